"""The penalty of each mask: exact in expectation, by summing over every mask there is."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eckart.linalg import k_support_norm, nuclear_norm
from eckart.regularizers import dropblock_penalty, dropconnect_penalty, dropout_penalty


def _case(seed: int, m: int = 3, n: int = 4, d: int = 4, N: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((m, d), (n, d), (n, N), (m, N))
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def _expectation(units: int, rate: float, loss) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Σ over all 2^units masks of their probability times loss(mask/θ)."""
    total = torch.zeros((), dtype=torch.float64)
    for bits in product((0.0, 1.0), repeat=units):
        kept = int(sum(bits))
        mask = torch.tensor(bits, dtype=torch.float64) / (1 - rate)
        total += rate ** (units - kept) * (1 - rate) ** kept * loss(mask)
    return total


@pytest.mark.parametrize("rate", [0.2, 0.7])
def test_dropouts_penalty_is_exact(rate: float) -> None:
    U, V, X, Y = _case(0)
    expected = _expectation(4, rate, lambda z: (Y - U * z @ V.mT @ X).square().sum())
    penalised = (Y - U @ V.mT @ X).square().sum() + dropout_penalty(U, V, rate, inputs=X)
    torch.testing.assert_close(penalised, expected)


@pytest.mark.parametrize("block", [1, 2, 4])
def test_dropblocks_penalty_is_exact(block: int) -> None:
    U, V, X, Y = _case(1)
    blocks = 4 // block
    expected = _expectation(blocks, 0.4, lambda z: (Y - U * z.repeat_interleave(block) @ V.mT @ X).square().sum())
    penalised = (Y - U @ V.mT @ X).square().sum() + dropblock_penalty(U, V, 0.4, block, inputs=X)
    torch.testing.assert_close(penalised, expected)


@pytest.mark.parametrize("layer", ["first", "second"])
def test_dropconnects_penalty_is_exact_on_either_layer(layer: str) -> None:
    U, V, X, Y = _case(2, d=3)
    weight = V if layer == "first" else U

    def loss(z: torch.Tensor) -> torch.Tensor:
        masked = weight * z.view_as(weight)
        left, right = (U, masked) if layer == "first" else (masked, V)
        return (Y - left @ right.mT @ X).square().sum()

    penalised = (Y - U @ V.mT @ X).square().sum() + dropconnect_penalty(U, V, 0.3, inputs=X, layer=layer)
    torch.testing.assert_close(penalised, _expectation(weight.numel(), 0.3, loss))


def test_dropconnect_is_dropout_on_the_second_layer_and_on_the_first_only_if_inputs_are_uncorrelated() -> None:
    U, V, X, _ = _case(3)
    dropout = dropout_penalty(U, V, 0.3, inputs=X)
    assert torch.equal(dropconnect_penalty(U, V, 0.3, inputs=X), dropout)
    assert not torch.isclose(dropconnect_penalty(U, V, 0.3, inputs=X, layer="first"), dropout, rtol=0.01)
    white = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64))
    torch.testing.assert_close(
        dropconnect_penalty(U, V, 0.3, inputs=white, layer="first"), dropout_penalty(U, V, 0.3, inputs=white)
    )


@given(st.integers(0, 10**6), st.integers(1, 3), st.floats(0.05, 0.9))
@settings(max_examples=25)
def test_no_factors_have_less_than_the_squared_norm_over_the_number_of_blocks(
    seed: int, block: int, rate: float
) -> None:
    U, V, X, _ = _case(seed, d=4 * block)
    Z = U @ V.mT @ X
    penalty = dropblock_penalty(U, V, rate, block, inputs=X)
    norm = k_support_norm(Z, min(block, *Z.shape))
    assert penalty >= rate / (1 - rate) / 4 * norm.square() * (1 - 1e-9)
    if block == 1:
        torch.testing.assert_close(norm, nuclear_norm(Z))


def test_only_the_second_moment_of_the_inputs_counts() -> None:
    U, V, X, _ = _case(4)
    turned = X @ torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    for penalty in (dropout_penalty, dropconnect_penalty, lambda *a, **k: dropblock_penalty(*a, 2, **k)):
        torch.testing.assert_close(penalty(U, V, 0.5, inputs=X), penalty(U, V, 0.5, inputs=turned))


def test_no_inputs_means_the_identity() -> None:
    U, V, *_ = _case(5)
    eye = torch.eye(4, dtype=torch.float64)
    for layer in ("first", "second"):
        torch.testing.assert_close(
            dropconnect_penalty(U, V, 0.5, layer=layer), dropconnect_penalty(U, V, 0.5, inputs=eye, layer=layer)
        )
    torch.testing.assert_close(dropblock_penalty(U, V, 0.5, 2), dropblock_penalty(U, V, 0.5, 2, inputs=eye))


def test_penalties_are_differentiable() -> None:
    U, V, X, _ = (x.requires_grad_() for x in _case(6))
    assert torch.autograd.gradcheck(lambda U, V: dropblock_penalty(U, V, 0.5, 2, inputs=X), (U, V))
    assert torch.autograd.gradcheck(lambda U, V: dropconnect_penalty(U, V, 0.5, inputs=X, layer="first"), (U, V))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_penalties_of_low_precision_weights_are_computed_in_float32(dtype: torch.dtype) -> None:
    U, V, X, _ = (x.to(dtype) for x in _case(7))
    exact = dropblock_penalty(U.double(), V.double(), 0.5, 2, inputs=X.double())
    value = dropblock_penalty(U, V, 0.5, 2, inputs=X)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact.float(), rtol=1e-5, atol=0)
    U.requires_grad_()
    dropout_penalty(U, V, 0.5).backward()
    assert U.grad.dtype == dtype


def test_what_does_not_fit_is_named() -> None:
    U, V, X, _ = _case(8)
    with pytest.raises(ValueError, match="rate must be in"):
        dropout_penalty(U, V, 1.0)
    with pytest.raises(ValueError, match="factors of UVᵀ"):
        dropout_penalty(U, V[:, :3], 0.5)
    with pytest.raises(ValueError, match="a sample in each column"):
        dropout_penalty(U, V, 0.5, inputs=X.mT)
    with pytest.raises(ValueError, match="block must divide the width 4"):
        dropblock_penalty(U, V, 0.5, 3)
    with pytest.raises(ValueError, match="'first' or 'second'"):
        dropconnect_penalty(U, V, 0.5, layer="both")
