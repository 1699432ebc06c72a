"""Models with compressed layers under every verb: as the model with their dense equivalents, name by name."""

import copy
from collections.abc import Callable
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eckart
from eckart.linalg import quantize, truncated_svd
from eckart.nn import (
    LAYERS,
    FactoredConv,
    FactoredLinear,
    Matrix,
    PivotedConv,
    PivotedLinear,
    QuantizedLinear,
    SelectedLinear,
    SparseLinear,
    SumLinear,
    is_compressed,
    matrices,
    observe,
    replace,
)
from families import families, stir

WANTED = ("input_covariance", "output_gradient_covariance", "gradient")


def _selected(W: Tensor, bias: Tensor | None) -> SelectedLinear:
    m, n = W.shape
    rows, columns = torch.arange(0, m, 2), torch.arange(1, n)
    return SelectedLinear(W[rows][:, columns], n, m, rows, columns, bias)


def _product(W: Tensor) -> tuple[Tensor, Tensor]:
    U, S, Vh = truncated_svd(W, max(1, min(W.shape) // 2))
    return U * S, Vh


_LINEAR: dict[str, Callable[[Tensor, Tensor | None], nn.Module]] = {
    "factored": lambda W, bias: FactoredLinear(*_product(W), bias),
    "pivoted": lambda W, bias: PivotedLinear.from_product(*_product(W), bias),
    "sum": lambda W, bias: SumLinear(
        FactoredLinear(*_product(W), bias), QuantizedLinear(quantize(W / 2, 8, block=16), None, W.dtype)
    ),
    "selected": _selected,
    "quantized": lambda W, bias: QuantizedLinear(quantize(W, 8, block=16), bias, W.dtype),
    "sparse": lambda W, bias: SparseLinear.from_matrix(W * (W.abs() > W.abs().median()), bias),
}
_CONV = {"factored_conv": FactoredConv, "pivoted_conv": PivotedConv}


def _layer(kind: str, matrix: Matrix) -> nn.Module:
    W = matrix.weight().detach()
    if kind in _CONV:
        return _CONV[kind].from_product(matrix.module, *_product(W))
    return _LINEAR[kind](W, getattr(matrix.module, "bias", None))


Twins = tuple[nn.Module, nn.Module, list[Any], Callable[[Any, Any], Tensor] | None]


@pytest.fixture(params=["llama", "sequential", "conv2d"])
def twins(request: pytest.FixtureRequest) -> Twins:
    """(a model whose layers are compressed, in every kind in turn; the same with dense equivalents; batches; loss)."""
    model, batches = families()[request.param]()
    model = model.double()
    batches = [batch.double() if isinstance(batch, Tensor) else batch for batch in batches]
    kinds = {"linear": cycle(_LINEAR), "conv": cycle(_CONV)}
    for matrix in matrices(model, exclude="*lm_head" if request.param == "llama" else None):
        if matrix.kind in kinds and matrix.stack == 1:
            replace(model, matrix.name, _layer(next(kinds[matrix.kind]), matrix))
    dense = copy.deepcopy(model)
    for matrix in matrices(model):
        if is_compressed(matrix.module):
            replace(dense, matrix.name, matrix.module.to_dense())  # type: ignore[operator]
    loss = None if request.param == "llama" else (lambda y, _: y.square().mean())
    return model, dense, batches, loss


def _output(model: nn.Module, batch: Any) -> Tensor:
    return model(**batch).logits if isinstance(batch, dict) else model(batch)


def test_the_models_are_the_same_map_and_have_the_same_matrices(twins: Twins) -> None:
    model, dense, batches, _ = twins
    assert any(not matrix.stored for matrix in matrices(model))
    assert [(m.name, m.kind, m.shape) for m in matrices(model)] == [(m.name, m.kind, m.shape) for m in matrices(dense)]
    torch.testing.assert_close(_output(model, batches[0]), _output(dense, batches[0]), rtol=1e-9, atol=1e-9)


def test_every_kind_stands_in_some_model() -> None:
    assert {*_LINEAR, *_CONV} == set(LAYERS)


def test_measured(twins: Twins) -> None:
    model, dense, _, _ = twins
    got, expected = eckart.measure(model).rows(), eckart.measure(dense).rows()
    assert [row["name"] for row in got] == [row["name"] for row in expected]
    for mine, theirs in zip(got, expected, strict=True):
        assert (mine["m"], mine["n"]) == (theirs["m"], theirs["n"])
        assert mine["stable_rank"] == pytest.approx(theirs["stable_rank"])


def test_observed(twins: Twins) -> None:
    model, dense, batches, loss = twins
    got, expected = (observe(each, batches, WANTED, loss=loss) for each in (model, dense))
    assert set(got) == set(expected)
    for name, seen in expected.items():
        assert got[name].tokens == seen.tokens
        for field in ("input_sum", "covariance", "output_gradient_second_moment", "gradient"):
            if (value := getattr(seen, field)) is not None:
                torch.testing.assert_close(getattr(got[name], field), value, rtol=1e-6, atol=1e-9)


def test_adapted_trained_and_merged(twins: Twins) -> None:
    model, _, batches, _ = twins
    before = _output(model, batches[0])
    compressed = {matrix.name for matrix in matrices(model) if not matrix.stored}
    adaptation = eckart.adapt(model, rank=2)
    assert set(adaptation.settings.ranks) >= compressed
    assert torch.equal(_output(model, batches[0]), before)
    stir(model)
    changed = _output(model, batches[0])
    changed.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert (changed - before).norm() > 1e-3 * before.norm()
    with pytest.warns(UserWarning, match=f"merge: {len(compressed)} compressed layers are dense now"):
        merged = eckart.merge(model)
    assert set(merged.certificates) == set(adaptation.settings.ranks)
    torch.testing.assert_close(_output(model, batches[0]), changed, rtol=1e-5, atol=1e-6)
    assert not any(is_compressed(module) for module in model.modules())


def test_an_adapter_taken_off_leaves_the_compressed_layers_as_they_were(twins: Twins) -> None:
    model, _, batches, _ = twins
    before, text = _output(model, batches[0]), str(model)
    eckart.adapt(model, rank=2)
    stir(model)
    eckart.adapters.remove(model, "default")
    assert str(model) == text
    assert torch.equal(_output(model, batches[0]), before)


def test_trained_on(twins: Twins) -> None:
    model, _, batches, loss = twins
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        out = model(**batches[0]) if isinstance(batches[0], dict) else model(batches[0])
        value = out.loss if loss is None else loss(out, None)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("twins", ["sequential"], indirect=True)
def test_compiled(twins: Twins) -> None:
    model, _, batches, _ = twins
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(_output(compiled, batches[0]), _output(model, batches[0]), rtol=1e-9, atol=1e-9)
