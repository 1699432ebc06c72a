"""Which parameters go where: matrices by rank, embeddings, heads and vectors to AdamW; ranks from a measurement."""

import json
import warnings
from typing import Any

import pytest
import torch
from optim_models import Zoo, batches, loss_of, train
from torch import nn

import eckart
from eckart.nn import matrices
from eckart.nn.heads import head_names
from eckart.optim import LowRankOptimizer, param_groups
from families import families


def ranks_of(groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Name → rank."""
    return {name: group["rank"] for group in groups for name, _ in group["params"]}


@pytest.mark.parametrize("family", sorted(families()))
def test_each_trained_parameter_is_in_one_group_and_tables_heads_and_vectors_have_no_rank(family: str) -> None:
    model, _ = families()[family]()
    groups = param_groups(model, 2)
    names = [name for group in groups for name, _ in group["params"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    ranks = ranks_of(groups)
    assert set(ranks.values()) == {2, None}
    for name, parameter in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        if parameter.ndim < 2 or isinstance(owner, nn.Embedding):
            assert ranks[name] is None, name
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is not None:
        assert next(ranks[name] for name, p in model.named_parameters() if p is head.weight) is None


def test_a_tied_head_is_a_head_wherever_its_table_stands() -> None:
    model = nn.ModuleDict({"head": nn.Linear(4, 9, bias=False), "body": nn.Linear(4, 4), "table": nn.Embedding(9, 4)})
    assert head_names(model, matrices(model)) == set()
    assert ranks_of(param_groups(model, 2))["head.weight"] == 2, (
        "an untied one that the model does not name is not known"
    )
    model.head.weight = model.table.weight
    assert head_names(model, matrices(model)) == {"head"}
    assert ranks_of(param_groups(model, 2)) == {"body.weight": 2, "head.weight": None, "body.bias": None}
    assert ranks_of(param_groups(model, 2, targets=["table", "body"])) == {
        "head.weight": 2, "body.weight": 2, "body.bias": None,
    }  # fmt: skip


def test_the_head_of_an_adapted_model_is_the_one_it_had() -> None:
    model, _ = families()["mixtral"]()
    before = head_names(model, matrices(model))
    eckart.adapt(model, rank=2, targets=["q_proj", "lm_head"])
    assert before == head_names(model, matrices(model)) == {"lm_head"}


def test_stacks_of_experts_are_groups_of_their_own_and_train_as_stacks() -> None:
    model, data = families()["mixtral"]()
    groups = param_groups(model, 2)
    stacks = {name for group in groups if group.get("stack") for name, _ in group["params"]}
    assert stacks == {name for name, p in model.named_parameters() if p.ndim == 3}
    optimizer = LowRankOptimizer(model, lr=1e-3, rank=2)
    train(model, optimizer, data[:1], loss_of)
    for name in stacks:
        parameter = model.get_parameter(name)
        E, m, n = parameter.shape
        assert tuple(optimizer.state[parameter]["basis"].shape) == (E, min(m, n), 2)


def test_weight_decay_is_of_matrices_and_tables_unless_vectors_are_asked_for() -> None:
    decays = [
        {name: group["weight_decay"] for group in groups for name, _ in group["params"]}
        for groups in (
            param_groups(Zoo(), 3, weight_decay=0.1),
            param_groups(Zoo(), 3, weight_decay=0.1, decay_vectors=True),
        )
    ]
    assert decays[0] == {name: 0.1 if p.ndim >= 2 else 0.0 for name, p in Zoo().named_parameters()}
    assert decays[1] == dict.fromkeys(decays[0], 0.1)


def test_options_of_the_rest_are_those_that_adamw_has() -> None:
    *_, rest = param_groups(Zoo(), 3, betas=(0.8, 0.9), eps=1e-6, gap=7, projector="svd")
    assert {key: value for key, value in rest.items() if key != "params"} == {
        "rank": None, "betas": (0.8, 0.9), "eps": 1e-6,
    }  # fmt: skip


def test_what_is_frozen_stays_out() -> None:
    model = Zoo()
    model.wide.requires_grad_(False)
    assert not [name for name in ranks_of(param_groups(model, 3)) if name.startswith("wide")]
    assert not [name for name in ranks_of(param_groups(model, {"wide": 3, "tall": 2})) if name.startswith("wide")]
    for p in model.parameters():
        p.requires_grad_(p.ndim < 2)
    with pytest.raises(ValueError, match="no matrix is left to train"):
        param_groups(model, 3)


def test_what_is_smaller_than_the_rank_goes_to_adamw_with_a_warning_unless_it_was_named() -> None:
    with pytest.warns(UserWarning, match=r"rank 9 is above a dimension of conv, experts.up_proj, tall: AdamW has them"):
        assert {name for name, r in ranks_of(param_groups(Zoo(), 9)).items() if r} == {"wide.weight"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        param_groups(Zoo(), 9, exclude=["conv", "up_proj", "tall"])
    with pytest.raises(ValueError, match=r"rank: 9 for conv.weight .*; from 1 to 8"):
        LowRankOptimizer(param_groups(Zoo(), 9, targets=["conv", "wide"]), rank=9)
    with pytest.raises(ValueError, match=r"rank: 99 for conv.weight"):
        LowRankOptimizer(Zoo(), rank=99)  # too much for all of them


def test_a_share_is_of_each_matrix() -> None:
    optimizer = LowRankOptimizer(model := Zoo(), rank=0.25)
    train(model, optimizer, batches(1))
    ranks = {name: optimizer.state[p]["exp_avg"].shape[-1] for name, p in model.named_parameters() if p.ndim > 1}
    assert ranks == {"table.weight": 8, "conv.weight": 2, "experts.up_proj": 2, "wide.weight": 2, "tall.weight": 2}


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "conv2d", "vit"])
def test_the_ranks_that_a_measurement_suggests_are_taken_as_they_are(family: str) -> None:
    model, data = families()[family]()
    suggested = json.loads(json.dumps(eckart.measure(model).suggest_ranks(0.5, floor=1)))
    optimizer = LowRankOptimizer(model, lr=1e-3, rank=suggested)
    train(model, optimizer, data[:1], loss_of)
    for matrix in matrices(model):
        wanted = [suggested[name] for name, _ in matrix.members() if name in suggested]
        state = optimizer.state[matrix.module._parameters[matrix.parameter]]
        if not wanted or sum(wanted) == matrix.stack * min(matrix.shape):
            assert "basis" not in state, f"{matrix.name} is dense"
        elif matrix.stack == 1:
            assert state["exp_avg"].shape[-1] == wanted[0], matrix.name
        elif "basis" in state:
            assert state["exp_avg"].shape[-1] == -(-sum(wanted) // matrix.stack), matrix.name
        else:
            assert sum(wanted) > matrix.stack * (min(matrix.shape) - 1), f"{matrix.name} rounds up to dense"


def test_members_of_a_stack_share_the_mean_of_their_ranks_rounded_up() -> None:
    members = {f"experts.up_proj[{i}]": r for i, r in enumerate((1, 2, 3, 4))}
    assert ranks_of(param_groups(Zoo(), {**members, "wide": 4}))["experts.up_proj"] == 3
    full = {f"experts.up_proj[{i}]": 8 for i in range(4)}
    assert ranks_of(param_groups(Zoo(), {**full, "wide": 4}))["experts.up_proj"] is None, "dense"


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({"widee": 2}, "rank: there is no matrix 'widee'; closest: wide"),
        ({"wide[0]": 2, "wide[1]": 2}, r"there is no matrix 'wide\[1\]'"),
        ({"experts.up_proj[4]": 2}, r"there is no matrix 'experts.up_proj\[4\]'; closest: experts.up_proj"),
        ({"experts.up_proj[0]": 2}, r"experts.up_proj is one stack of 4: experts.up_proj\[1\] has none"),
        ({"experts.up_proj": 2, "experts.up_proj[0]": 2}, "one stack of 4: it and its members have ranks"),
        ({"table": 2, "head": 3}, "head has the weight of another name, which has another rank; they are tied"),
        ({}, "no matrix is left"),
    ],
    ids=str,
)
def test_a_mapping_that_does_not_fit_the_model_is_refused(ranks: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LowRankOptimizer(Zoo(), rank=ranks)


@pytest.mark.parametrize("rank", [0, 9, True, 2.5, "3"])
def test_a_rank_of_a_mapping_that_cannot_be_names_its_matrix(rank: Any) -> None:
    with pytest.raises(ValueError, match=r"rank: .* for tall.weight \(8, 24\); from 1 to 8"):
        LowRankOptimizer(Zoo(), rank={"tall": rank})
    with pytest.raises(ValueError, match=r"rank: .* for tall.weight \(8, 24\); from 1 to 8"):
        LowRankOptimizer(Zoo().named_parameters(), rank={"tall": rank})


def test_a_mapping_goes_with_named_parameters_too() -> None:
    optimizer = LowRankOptimizer(model := Zoo(), rank={"wide": 4, "tall": 2, "conv": 8})
    named = LowRankOptimizer(Zoo().named_parameters(), rank={"wide.weight": 4, "tall": 2, "conv": 8})
    for one in (optimizer, named):
        ranks = {name: group["rank"] for group in one.param_groups for name in group["param_names"]}
        assert {name: r for name, r in ranks.items() if r is not None} == {"wide.weight": 4, "tall.weight": 2}
    with pytest.raises(ValueError, match="rank: a mapping needs names"):
        LowRankOptimizer(model.parameters(), rank={"wide": 4})
    with pytest.raises(ValueError, match="rank: there is no parameter 'wdie'; closest: wide"):
        LowRankOptimizer(model.named_parameters(), rank={"wdie": 4})


@pytest.mark.parametrize("pattern", ["wdie", "nothing.*"])
def test_patterns_that_match_nothing_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"targets: .* matches none of"):
        param_groups(Zoo(), 3, targets=pattern)
    with pytest.raises(ValueError, match=r"exclude: .* matches none of"):
        param_groups(Zoo(), 3, exclude=pattern)


def test_the_name_of_an_owner_and_of_a_parameter_agree_where_they_are_shared() -> None:
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.Linear(6, 5), shared)
    assert ranks_of(param_groups(model, {"2": 2, "1": 3})) == {
        "0.weight": 2, "1.weight": 3, "0.bias": None, "1.bias": None,
    }  # fmt: skip
    assert torch.equal(model[0].weight, model[2].weight)
