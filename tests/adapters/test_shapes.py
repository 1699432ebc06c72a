"""VeRA, LoHa and LoKr: what their papers and PEFT say that they are, by the cheapest way."""

import copy
import gc
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart.adapters import adapt
from eckart.adapters.layers.place import adapters
from eckart.adapters.shapes import vectors
from eckart.adapters.shapes.kronecker import split
from families import families

peft = pytest.importorskip("peft")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 18), nn.ReLU(), nn.Linear(18, 30), nn.ReLU(), nn.Linear(30, 8))


def stirred(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return model


def theirs(config: Any) -> nn.Module:
    return peft.get_peft_model(net(), config)


def test_vera_draws_the_pair_that_peft_draws_from_the_same_seed() -> None:
    model = net()
    adapt(model, "vera", rank=5, seed=7)
    names = ["0", "2", "4"]
    base = theirs(peft.VeraConfig(r=5, projection_prng_key=7, target_modules=names, save_projection=True))
    shared = next(adapter for _, adapter in adapters(model, "default")).shared
    torch.testing.assert_close(shared.B, base.base_model.vera_B["default"], rtol=0, atol=0)
    torch.testing.assert_close(shared.A, base.base_model.vera_A["default"], rtol=0, atol=0)


def test_vera_holds_one_pair_for_all_matrices_also_after_a_copy_and_a_move() -> None:
    model = net()
    adapt(model, "vera", rank=5)
    for held in (model, copy.deepcopy(model).double()):
        pairs = {id(adapter.shared) for _, adapter in adapters(held, "default")}
        assert len(pairs) == 1
        assert not any("shared" in key for key in held.state_dict())
    mine = next(adapter for _, adapter in adapters(model, "default")).shared
    other = next(adapter for _, adapter in adapters(copy.deepcopy(model), "default")).shared
    assert mine.B.data_ptr() != other.B.data_ptr()


def test_vera_of_two_models_shares_nothing_and_is_forgotten_with_them() -> None:
    gc.collect()
    before = len(vectors._PAIRS)
    one, two = net(), net()
    adapt(one, "vera", rank=5)
    adapt(two, "vera", rank=5)
    first, second = (next(a for _, a in adapters(model, "default")).shared for model in (one, two))
    assert first is not second
    assert torch.equal(first.B, second.B)
    del one, two, first, second
    gc.collect()
    assert len(vectors._PAIRS) == before


def test_vera_may_have_a_rank_above_its_matrices_and_trains_rank_plus_rows_numbers() -> None:
    adaptation = adapt(net(), "vera")
    assert adaptation.trained == 3 * 256 + 18 + 30 + 8


def test_a_rank_that_the_shape_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match="rank: 9 for 4"):
        adapt(net(), "loha", rank=9, targets="4")


@pytest.mark.parametrize("rank", [1, 2, 8])
def test_loha_is_the_same_by_the_thin_pair_and_by_the_dense_product(rank: int) -> None:
    model = net()
    adapt(model, "loha", rank=rank)
    stirred(model)
    for name, adapter in adapters(model, "default"):
        m, n = adapter.shape
        assert adapter.thin == (rank**2 * (m + n) < m * n), name
        expected = adapter.scale * (adapter.B1 @ adapter.A1) * (adapter.B2 @ adapter.A2)
        torch.testing.assert_close(adapter.delta(), expected)
        adapter.thin = True
        B, A = adapter.pair()
        torch.testing.assert_close(adapter.scale * (B @ A), expected)


def _lycoris(model: nn.Module, base: nn.Module, prefix: str, names: dict[str, str]) -> None:
    """Give PEFT's adapter the same numbers."""
    with torch.no_grad():
        for name, adapter in adapters(model, "default"):
            layer = base.base_model.model.get_submodule(name)
            for mine in adapter.factors:
                held = getattr(layer, prefix + names[mine])["default"]
                held.copy_(getattr(adapter, mine).reshape(held.shape))


def test_loha_gives_what_peft_gives_with_the_same_factors() -> None:
    model = net()
    adapt(model, "loha", rank=3)
    stirred(model)
    base = theirs(peft.LoHaConfig(r=3, alpha=8, target_modules=["0", "2", "4"]))
    _lycoris(model, base, "hada_", {"B1": "w1_a", "A1": "w1_b", "B2": "w2_a", "A2": "w2_b"})
    x = torch.randn(5, 12)
    torch.testing.assert_close(model(x), base(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"both": True}, {"factor": 2}, {"factor": 6, "both": True}])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_lokr_gives_what_peft_gives_with_the_same_factors(rank: int, options: dict[str, Any]) -> None:
    model = net()
    adapt(model, "lokr", rank=rank, **options)
    stirred(model)
    given = {"decompose_factor": options.get("factor", -1), "decompose_both": options.get("both", False)}
    base = theirs(peft.LoKrConfig(r=rank, alpha=8, target_modules=["0", "2", "4"], **given))
    names = {"W1": "w1", "B1": "w1_a", "A1": "w1_b", "W2": "w2", "B2": "w2_a", "A2": "w2_b"}
    _lycoris(model, base, "lokr_", names)
    x = torch.randn(5, 12)
    torch.testing.assert_close(model(x), base(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 8])
def test_lokr_of_a_convolution_is_peft_s(rank: int) -> None:
    def convolution() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(6, 8, 3, padding=1))

    model = convolution()
    adapt(model, "lokr", rank=rank)
    stirred(model)
    base = peft.get_peft_model(convolution(), peft.LoKrConfig(r=rank, alpha=8, target_modules=["0"]))
    _lycoris(model, base, "lokr_", {"W1": "w1", "W2": "w2", "B2": "w2_a", "A2": "w2_b"})
    x = torch.randn(2, 6, 5, 5)
    torch.testing.assert_close(model(x), base(x), rtol=1e-4, atol=1e-4)


def test_lokr_never_forms_the_dense_matrix_for_linear_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    adapt(model, "lokr", rank=2)
    for _, adapter in adapters(model, "default"):
        monkeypatch.setattr(type(adapter), "delta", lambda self: pytest.fail("formed"))
    model(torch.randn(3, 12)).sum().backward()


@pytest.mark.parametrize("factor", [0, -2])
def test_a_factor_that_splits_nothing_is_refused_and_leaves_the_model_as_it_was(factor: int) -> None:
    with pytest.raises(ValueError, match="factor"):
        split(12, factor)
    model = net()
    with pytest.raises(ValueError, match="factor"):
        adapt(model, "lokr", factor=factor)
    assert all(p.requires_grad for p in model.parameters())
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("method", ["vera", "loha", "lokr"])
def test_their_starts_are_uniform_with_one_factor_at_zero(method: str) -> None:
    model = nn.Sequential(nn.Linear(400, 300))
    adapt(model, method, rank=4)
    ((_, adapter),) = adapters(model, "default")
    values: dict[str, Tensor] = {name: getattr(adapter, name).detach() for name in adapter.factors}
    zero = {"vera": "b", "loha": "A2", "lokr": "W1"}[method]
    assert all((value == 0).all() == (name == zero) for name, value in values.items())
    for name, value in values.items():
        if name not in (zero, "d"):
            assert value.abs().max() <= value.shape[-1] ** -0.5
            assert math.isclose(value.std(), (3 * value.shape[-1]) ** -0.5, rel_tol=0.2)


def test_the_shapes_compile_without_a_break() -> None:
    for method in ("vera", "loha", "lokr"):
        model, batches = families()["sequential"]()
        adapt(model, method, rank=2)
        stirred(model)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(batches[0]), model(batches[0]), rtol=1e-4, atol=1e-4)
