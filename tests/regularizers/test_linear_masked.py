"""The linear masked autoencoder: its expected loss against every mask there is, and its optimum against all others."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eckart.linalg import weighted_singular_values
from eckart.regularizers import (
    masked_linear_factors,
    masked_linear_loss,
    masked_linear_optimum,
    masked_linear_penalty,
)

RATES = (0.0, 0.25, 0.5, 0.9)


def _draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rate", RATES)
def test_the_expected_loss_is_the_mean_over_every_mask(rate: float) -> None:
    X, A = _draw(3, 3), _draw(3, 3, seed=1)
    total = 0.0
    for bits in product((0.0, 1.0), repeat=9):
        kept = torch.tensor(bits, dtype=torch.float64).view(3, 3)
        chance = ((1 - rate) ** kept * rate ** (1 - kept)).prod()
        total += float(chance * (X - A @ (kept * X) / (1 - rate)).square().sum())
    assert float(masked_linear_loss(A, X @ X.mT, rate=rate)) == pytest.approx(total, rel=1e-12)


@settings(max_examples=25)
@given(
    n=st.integers(1, 8), samples=st.integers(1, 12), rate=st.sampled_from((0.1, 0.5, 0.9)), seed=st.integers(0, 10**6)
)
def test_nothing_moves_the_optimum_down(n: int, samples: int, rate: float, seed: int) -> None:
    X = _draw(n, samples, seed=seed)
    C = X @ X.mT
    A = masked_linear_optimum(C, rate=rate).requires_grad_()
    masked_linear_loss(A, C, rate=rate).backward()
    assert A.grad is not None
    assert float(A.grad.abs().max()) <= 1e-8 * float(C.abs().max())


def test_the_optimum_is_the_formula_where_the_inverse_exists() -> None:
    X = _draw(6, 20)
    C = X @ X.mT
    for rate in RATES:
        formula = C @ torch.linalg.inv(C + rate / (1 - rate) * C.diagonal().diag())
        torch.testing.assert_close(masked_linear_optimum(C, rate=rate), formula)
        torch.testing.assert_close(masked_linear_optimum(100 * C, rate=rate), formula)


def test_singular_data_give_the_optimum_of_least_norm() -> None:
    X = _draw(6, 2)
    X[3] = 0
    C = X @ X.mT
    span = X @ torch.linalg.pinv(X)
    torch.testing.assert_close(masked_linear_optimum(C, rate=0.0), span)
    A = masked_linear_optimum(C, rate=0.5)
    assert A[3].abs().max() <= 1e-12
    assert A[:, 3].abs().max() <= 1e-12
    assert masked_linear_optimum(torch.zeros(3, 3), rate=0.5).abs().max() == 0


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("samples", [3, 30])
def test_the_bottleneck_reaches_the_least_loss_of_its_rank(rate: float, samples: int) -> None:
    X = _draw(6, samples)
    C = X @ X.mT
    noisy = C + rate / (1 - rate) * C.diagonal().diag()
    values = weighted_singular_values(masked_linear_optimum(C, rate=rate), input_covariance=noisy)
    for rank in range(1, 7):
        decoder, encoder = masked_linear_factors(C, rank, rate=rate)
        assert decoder.shape == (6, rank)
        assert encoder.shape == (rank, 6)
        least = float(C.trace() - values[:rank].square().sum())
        found = float(masked_linear_loss(decoder @ encoder, C, rate=rate))
        assert found == pytest.approx(least, rel=1e-7, abs=1e-7 * float(C.trace()))


def test_no_other_bottleneck_does_better() -> None:
    X = _draw(5, 20)
    C = X @ X.mT
    decoder, encoder = masked_linear_factors(C, 2, rate=0.5)
    best = masked_linear_loss(decoder @ encoder, C, rate=0.5)
    for seed in range(50):
        near = (decoder + 0.1 * _draw(5, 2, seed=seed)) @ (encoder + 0.1 * _draw(2, 5, seed=seed + 100))
        assert masked_linear_loss(near, C, rate=0.5) > best


def test_the_penalty_is_dropouts_on_the_inputs() -> None:
    X, A = _draw(4, 7), _draw(3, 4, seed=1)
    expected = 3 * sum(float(A[:, j].square().sum() * X[j].square().sum()) for j in range(4))
    assert float(masked_linear_penalty(A, X @ X.mT, rate=0.75)) == pytest.approx(expected, rel=1e-12)


def test_half_precision_data_keep_their_dtype() -> None:
    X = _draw(4, 9)
    C = (X @ X.mT).to(torch.bfloat16)
    A = masked_linear_optimum(C, rate=0.5)
    assert A.dtype == torch.bfloat16
    torch.testing.assert_close(A.double(), masked_linear_optimum(X @ X.mT, rate=0.5), atol=0.03, rtol=0.03)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_rate_outside_is_named(rate: float) -> None:
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\)"):
        masked_linear_optimum(torch.eye(2), rate=rate)


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"second_moment must be \(n, n\).*\(2, 3\)"):
        masked_linear_optimum(torch.zeros(2, 3), rate=0.5)
    with pytest.raises(ValueError, match=r"\(3, 3\) and \(2, 2\)"):
        masked_linear_loss(torch.eye(2), torch.eye(3), rate=0.5)
    with pytest.raises(ValueError, match=r"must be square, got \(2, 3\)"):
        masked_linear_loss(torch.ones(2, 3), torch.eye(3), rate=0.5)
    with pytest.raises(ValueError, match="rank must be from 1 to 3"):
        masked_linear_factors(torch.eye(3), 4, rate=0.5)
