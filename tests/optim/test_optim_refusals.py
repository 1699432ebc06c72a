"""What the optimizer refuses: with the option or the parameter named, and with nothing changed."""

import copy
from typing import Any

import pytest
import torch
from optim_models import Zoo, batches, optimizer_for, state_of, train
from torch import nn

from eckart.optim import METHODS, LowRankOptimizer


def frozen(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Copies of all weights and states."""
    return [t.detach().clone() for t in (*model.parameters(), *state_of(optimizer).values())]


def unchanged(before: list[torch.Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    after = frozen(model, optimizer)
    return len(before) == len(after) and all(map(torch.equal, before, after))


@pytest.mark.parametrize("rank", [0, -1, 9, True, False, 2.5, 1.0, 0.0, "4", float("nan")])
@pytest.mark.parametrize("method", METHODS)
def test_a_rank_that_cannot_be_names_the_parameter_and_what_it_may_be(method: str, rank: Any) -> None:
    named = nn.Linear(8, 12).named_parameters()
    with pytest.raises(ValueError, match=r"rank: .* for weight \(12, 8\); from 1 to 8"):
        LowRankOptimizer(named, rank=rank, method=method)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "galroe"}, "method: 'galroe'; closest: galore"),
        ({"projector": "poewr"}, "projector: 'poewr'.*did you mean 'power'"),
        ({"inner": "adam"}, "inner: 'adam'.*did you mean 'adamw'"),
        ({"residual": "norm_scaled"}, "residual: .*did you mean 'norm-scaled'"),
        ({"transport": "rotat"}, "transport: .*did you mean 'rotate'"),
        ({"limiter": "grwoth"}, "limiter: .*did you mean 'growth'"),
        ({"side": "top"}, "side: 'top'; one of None, smaller, left, right"),
        ({"schedule": "adaptiv"}, "schedule: .*did you mean 'adaptive'"),
        ({"moments": "4bit"}, "moments: '4bit'; one of float32, 8bit; did you mean '8bit'"),
        ({"basis": 4}, "basis: 4; one of float32, 4bit, seed"),
        ({"gap": 0}, "gap: 0; a whole number of steps, at least 1"),
        ({"gap": 2.0}, "gap: 2.0; a whole"),
        ({"gap": True}, "gap: True"),
        ({"seed": 1.5}, "seed: 1.5; a whole number"),
        ({"lr": -1.0}, "lr: -1.0; a number, at least 0"),
        ({"lr": "1e-3"}, "lr: '1e-3'; a number, at least 0"),
        ({"lr": float("nan")}, "lr: nan"),
        ({"weight_decay": -0.1}, "weight_decay: -0.1"),
        ({"adapt_above": "most"}, "adapt_above: 'most'; a number, at least 0"),
        ({"betas": (0.9, 1.0)}, r"betas: \(0.9, 1.0\)"),
        ({"betas": (0.9,)}, r"betas: \(0.9,\); two numbers"),
        ({"projector": "random", "residual": "sgd"}, "residual: 'sgd' .*use projector='orthonormal'"),
        ({"basis": "seed"}, "basis: 'seed' does not go with projector 'power'"),
        ({"projector": "random", "basis": "4bit"}, "basis: '4bit' does not go with projector 'random'"),
        ({"transport": "ldadam", "inner": "lion"}, "transport: 'ldadam' .*inner is 'lion'"),
        ({"projector": "momentum-power", "inner": "sign"}, "projector: 'momentum-power' goes by .*inner is 'sign'"),
        ({"method": "osd", "schedule": "adaptive"}, "schedule: 'adaptive'.*moves at each step"),
        ({"method": "dion", "basis": "4bit"}, "basis: '4bit' does not go with projector 'dion'"),
        ({"stack": True}, r"stack: weight \(4, 3, 3, 3\) has 4 dimensions"),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_is_named(options: dict[str, Any], message: str) -> None:
    layer = nn.Conv2d(3, 4, 3) if "stack" in options else nn.Linear(8, 12)
    with pytest.raises(ValueError, match=message):
        LowRankOptimizer(layer.named_parameters(), **{"rank": 2, **options})


def test_unknown_options_and_misspelt_keys_of_groups_are_refused_with_the_closest() -> None:
    layer = nn.Linear(8, 12)
    with pytest.raises(TypeError, match="takes no 'weightdecay'; closest: weight_decay"):
        LowRankOptimizer(layer.parameters(), rank=2, weightdecay=0.1)
    with pytest.raises(ValueError, match="an option 'weight_deacy'; did you mean 'weight_decay'"):
        LowRankOptimizer([{"params": layer.parameters(), "weight_deacy": 0.1}], rank=2)
    optimizer = LowRankOptimizer([{"params": layer.parameters(), "initial_lr": 0.1, "name": "body"}], rank=2)
    assert optimizer.param_groups[0]["initial_lr"] == 0.1, "what is of others stays"


def test_a_group_that_is_refused_leaves_the_optimizer_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 8))
    optimizer = LowRankOptimizer(model[0].parameters(), rank=2)
    with pytest.raises(ValueError, match="rank: 20"):
        optimizer.add_param_group({"params": list(model[1].parameters()), "rank": 20})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": list(model[1].parameters()), "rank": 3})
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    assert [state["exp_avg"].shape[-1] for p, state in optimizer.state.items() if p.ndim == 2] == [2, 3]


@pytest.mark.parametrize("params", [[], iter(())], ids=["list", "iterator"])
def test_no_parameters_are_refused(params: Any) -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        LowRankOptimizer(params, rank=2)


def test_parameters_that_are_not_real_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"torch\.complex64; give real floating-point parameters"):
        LowRankOptimizer([nn.Parameter(torch.ones(4, 4, dtype=torch.complex64))], rank=2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_that_is_no_number_names_its_parameter_and_changes_nothing(
    method: str, steps: int, bad: float
) -> None:
    model = Zoo()
    optimizer = optimizer_for(model, method, weight_decay=0.1)
    train(model, optimizer, batches()[:steps])
    before = frozen(model, optimizer)
    for name in ("conv.weight", "tall.weight", "norm.bias"):  # early, late, a vector
        optimizer.zero_grad()
        model(batches()[0]).backward()
        parameter = model.get_parameter(name)
        assert parameter.grad is not None
        parameter.grad[0] = bad
        with pytest.raises(ValueError, match=rf"^{name}: \d+ of {parameter.numel()} entries .* nothing was changed"):
            optimizer.step()
        assert unchanged(before, model, optimizer)
    losses = train(model, optimizer, batches())
    assert all(map(torch.isfinite, map(torch.tensor, losses)))


@pytest.mark.parametrize("method", ["galore", "fira", "apollo"])
def test_where_no_gradient_is_looked_at_as_on_a_gpu_a_refresh_still_names_what_is_no_number(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Zoo()
    optimizer = optimizer_for(model, method, gap=2)
    train(model, optimizer, batches()[:2])
    before = frozen(model, optimizer)
    model(batches()[0]).backward()
    assert model.tall.weight.grad is not None
    model.tall.weight.grad[0] = float("nan")
    monkeypatch.setattr("eckart.optim.optimizer.require_finite", lambda *args, **options: None)
    with pytest.raises(ValueError, match=r"^tall.weight: its gradient, for which a new basis is due, holds NaN"):
        optimizer.step()
    assert unchanged(before, model, optimizer)


def test_large_numbers_are_numbers() -> None:
    W = nn.Parameter(torch.ones(6, 4))
    optimizer = LowRankOptimizer([W], rank=2)
    W.grad = torch.full((6, 4), 1e25)  # their squares are not
    optimizer.step()
    assert bool(W.isfinite().all())


def test_a_sparse_gradient_names_its_parameter_and_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Embedding(9, 4, sparse=True))
    optimizer = LowRankOptimizer(
        [{"params": [("first", model[0].weight)]}, {"params": [("table", model[1].weight)], "rank": None}], rank=2
    )
    before = frozen(model, optimizer)
    (model[0](torch.ones(1, 4)).sum() + model[1](torch.tensor([2])).sum()).backward()
    with pytest.raises(ValueError, match="table: its gradient is sparse; give the embedding sparse=False"):
        optimizer.step()
    assert unchanged(before, model, optimizer)


def refuse_to_load(saved: dict[str, Any], optimizer: torch.optim.Optimizer, message: str) -> None:
    """Loading fails with the message, and the optimizer has the state and the options that it had."""
    groups = copy.deepcopy([{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups])
    before = {key: t.clone() for key, t in state_of(optimizer).items()}
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    assert [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups] == groups
    after = state_of(optimizer)
    assert list(before) == list(after)
    assert all(torch.equal(t, after[key]) for key, t in before.items())
    assert not optimizer._optimizer_load_state_dict_pre_hooks


def trained(method: str = "galore", **options: Any) -> LowRankOptimizer:
    model = Zoo()
    optimizer = optimizer_for(model, method, **options)
    train(model, optimizer, batches(2))
    return optimizer


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"galore"}))
def test_the_state_of_another_method_is_refused(method: str) -> None:
    refuse_to_load(trained().state_dict(), trained(method), "state_dict: it is of [a-z]+='?[a-z0-9-]+'?, and this")
    refuse_to_load(trained(method).state_dict(), trained(), "state_dict: it is of ")


def test_the_state_of_another_rank_or_model_is_refused() -> None:
    refuse_to_load(trained(rank=2).state_dict(), trained(), "it is of rank=2, and this optimizer has 3 for conv.weight")
    layers = [nn.Linear(8, 12, bias=False), nn.Linear(8, 16, bias=False)]
    few = [LowRankOptimizer(layer.parameters(), rank=2) for layer in layers]
    for layer, optimizer in zip(layers, few, strict=True):
        layer(torch.ones(1, 8)).sum().backward()
        optimizer.step()
    refuse_to_load(few[0].state_dict(), few[1], r"exp_avg of params\[0\] is \(12, 2\), and \(16, 2\) is needed")
    refuse_to_load(trained().state_dict(), few[0], "3 groups, and this optimizer has 1")
    refuse_to_load({"model": {}}, few[0], "it has no 'param_groups'")
    both = LowRankOptimizer([p for layer in layers for p in layer.parameters()], rank=2)
    refuse_to_load(both.state_dict(), few[0], "a group has 2 parameters, this optimizer's 1")
    renamed = copy.deepcopy(trained().state_dict())
    renamed["param_groups"][0]["param_names"][1] = "deep.weight"
    refuse_to_load(renamed, trained(), "another model or in another order: 'deep.weight' where 'wide.weight' is")


@pytest.mark.parametrize("method", METHODS)
def test_a_state_that_lost_a_tensor_or_was_cast_is_refused(method: str) -> None:
    saved = copy.deepcopy(trained(method).state_dict())
    key = next(key for key, t in saved["state"][0].items() if t.ndim >= 2 and t.is_floating_point())
    cast = copy.deepcopy(saved)
    cast["state"][0][key] = saved["state"][0][key].bfloat16()
    if not key.endswith("_scales"):
        refuse_to_load(cast, trained(method), f"{key} of conv.weight is torch.bfloat16, and torch.float32 is needed")
    del saved["state"][0]["side"]
    refuse_to_load(saved, trained(method), "conv.weight was not trained in a subspace there")
    dense = copy.deepcopy(trained(method).state_dict())
    last = dense["param_groups"][-1]["params"][-1]
    del dense["state"][last]["exp_avg_sq"]
    refuse_to_load(dense, trained(method), "has no 'exp_avg_sq' there")
