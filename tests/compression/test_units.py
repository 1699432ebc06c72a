"""Which matrices of a model go together, in every family; and what is not clear is told."""

import copy

import pytest
import torch
from torch import nn

from eckart.compression import compress, metrics
from eckart.compression.pieces.parts import mlps, query_keys, value_outputs
from eckart.compression.pieces.units import modegpt
from eckart.compression.settings import Settings
from eckart.nn import Role, SelectedLinear, matrices, roles
from families import families

FORMS = {
    "llama": {"neurons": 2, "keys": 2, "values": 2},
    "bert": {"neurons": 2, "keys": 2, "values": 2, "factors": 1},
    "vit": {"neurons": 2, "keys": 2, "values": 2},
    "gpt2": {"neurons": 2, "factors": 4},
    "encoder": {"neurons": 2},
    "sequential": {"factors": 3},
}


@pytest.mark.parametrize("family", FORMS)
@pytest.mark.filterwarnings("ignore:modegpt")
def test_what_goes_together_in_each_family(family: str) -> None:
    model, batches = families()[family]()
    loss = (lambda output, batch: output.square().mean()) if family in ("encoder", "sequential") else None
    plan = compress(model, batches, keep=0.5, method="modegpt", loss=loss, dry_run=True)
    forms = [row["form"] for row in plan.rows()]
    assert {form: forms.count(form) for form in FORMS[family]} == FORMS[family]
    assert 0.4 < plan.kept <= 0.5
    assert sorted(name for piece in plan.pieces for name in piece.names) == sorted(
        name for row in plan.rows() for name in row["matrices"]
    )


@pytest.mark.parametrize("family", ["llama", "bert", "vit", "gpt2"])
def test_at_one_less_than_full_a_model_hardly_changes_and_its_numbers_are_those_told(family: str) -> None:
    model, batches = families()[family]()
    plan = compress(model, batches, keep=1.0, method="modegpt", dry_run=True)
    before = model(**batches[0]).logits.detach()
    sizes = {piece.label: piece.full - 1 for piece in plan.pieces if len(piece.names) > 1}
    total = sum(p.nbytes for p in model.parameters() if p.ndim >= 2)
    smaller = plan.at(ranks=sizes)
    smaller.apply()
    after = model(**batches[0]).logits
    assert (after - before).norm() < 0.25 * before.norm()
    places = sum(
        index.nbytes
        for module in model.modules()
        if isinstance(module, SelectedLinear)
        for index in (module.order, module.columns)
        if index is not None
    )
    left = sum(p.nbytes for p in model.parameters() if p.ndim >= 2)
    assert left + places == total - plan.dense_bytes + smaller.bytes


def test_a_llama_of_twin_neurons_and_dead_pairs_is_compressed_without_loss() -> None:
    model, batches = families()["llama"]()
    with torch.no_grad():
        for layer in model.model.layers:
            for projection in (layer.mlp.gate_proj, layer.mlp.up_proj):
                projection.weight[20:] = projection.weight[:20]
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                projection.weight.unflatten(0, (-1, 4))[:, [0, 2]] = 0
            values = layer.self_attn.v_proj.weight.unflatten(0, (-1, 4))
            values[:, 2:] = values[:, :2] * 0.5
    model.double()
    before = model(**batches[0]).logits.detach()
    plan = compress(model, batches, keep=1.0, method="modegpt", shrink=0.0, dry_run=True)
    plan.at(ranks={piece.label: piece.full // 2 for piece in plan.pieces}).apply()
    torch.testing.assert_close(model(**batches[0]).logits, before, rtol=1e-4, atol=1e-4)


def test_a_compressed_llama_generates_with_its_cache_as_without() -> None:
    model, batches = families()["llama"]()
    compress(model, batches, keep=0.6, method="modegpt")
    ids = batches[0]["input_ids"]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    with_cache, without = (model.generate(ids, use_cache=use, **options) for use in (True, False))
    assert torch.equal(with_cache, without)
    assert copy.deepcopy(model)(**batches[0]).logits.equal(model(**batches[0]).logits)


def test_where_no_role_is_known_it_is_told_and_roles_can_be_given() -> None:
    model, _ = families()["sequential"]()
    found = matrices(model)
    with pytest.warns(UserWarning, match=r"no MLP .* each is taken alone; say which is which with role="):
        modegpt(model, found, Settings(), metrics.plain)
    given = Settings(roles=roles(model, {"0": "up", "2": "down"}))
    assert [piece.form for piece in modegpt(model, found, given, metrics.plain)] == ["neurons", "factors"]


class Headless(nn.Module):
    """Attention that does not say how many heads it has."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(8, 8) for _ in range(4))


def test_unknown_numbers_of_heads_are_named_and_can_be_given() -> None:
    model = Headless()
    found = matrices(model)
    with pytest.raises(ValueError, match=r"how many heads q_proj and k_proj have cannot be told"):
        list(query_keys(model, found, roles(model)))
    given = roles(model, {"q_proj": Role("q", heads=4, kv_heads=4), "v_proj": Role("v", heads=2, kv_heads=2)})
    assert [heads.heads for heads in query_keys(model, found, given)] == [4]
    assert [heads.heads for heads in value_outputs(model, found, given)] == [2]
    assert list(query_keys(model, found, roles(model, {"q_proj": "other"}))) == []


def test_norms_and_sinks_between_keep_matrices_apart() -> None:
    model = Headless()
    known = roles(model, {"*": Role("other", heads=2, kv_heads=2), "q_proj": "q"} | {f"{k}_proj": k for k in "kvo"})
    known |= {name: Role(role.kind, None, 2, 2) for name, role in known.items()}
    found = matrices(model)
    assert len([*query_keys(model, found, known), *value_outputs(model, found, known)]) == 2
    model.q_norm = nn.LayerNorm(4)
    assert [each.first.name for each in query_keys(model, found, known)] == []
    assert [each.first.name for each in value_outputs(model, found, known)] == ["v_proj"]
    model.sinks = nn.Parameter(torch.zeros(2))
    assert list(value_outputs(model, found, known)) == []


def test_an_mlp_with_a_norm_over_its_neurons_or_a_part_left_out_is_not_taken() -> None:
    model = nn.ModuleDict({"up_proj": nn.Linear(4, 6), "down_proj": nn.Linear(6, 4), "gate_proj": nn.Linear(4, 6)})
    known = roles(model)
    found = matrices(model)
    assert [len(mlp.inner) for mlp in mlps(model, found, known)] == [2]
    assert list(mlps(model, matrices(model, exclude="gate_proj"), known)) == []
    model["norm"] = nn.LayerNorm(6)
    assert list(mlps(model, found, known)) == []
