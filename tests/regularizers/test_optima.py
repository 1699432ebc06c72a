"""Closed-form optima: the papers' formulas, factors that attain them, and nothing that does better."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eckart.linalg import k_support_norm, nuclear_norm, singular_values
from eckart.regularizers import (
    adaptive_rate,
    dropblock_optimum,
    dropblock_penalty,
    dropout_optimum,
    dropout_penalty,
    fit_factors,
)
from eckart.regularizers.frames import equal_frames

SPECTRUM = torch.tensor([5.0, 4.0, 3.0, 2.0, 0.7], dtype=torch.float64)


def _matrix(seed: int, m: int = 8, n: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    U = torch.linalg.qr(torch.randn(m, 5, generator=generator, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(n, 5, generator=generator, dtype=torch.float64)).Q
    return U * SPECTRUM @ V.mT


def _thresholded(S: torch.Tensor, weight: float) -> torch.Tensor:
    """σ − μ, μ = λ Σ_{i≤ρ} σ_i/(1 + λρ), the largest ρ with σ_ρ > μ."""
    for rho in range(len(S), 0, -1):
        mu = weight * S[:rho].sum() / (1 + weight * rho)
        if S[rho - 1] > mu:
            return (S - mu).clamp(min=0)
    return torch.zeros_like(S)


@pytest.mark.parametrize("width", [5, 8, 20, 40])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropouts_optimum_is_the_papers_threshold_with_equalised_factors(width: int, rate: float) -> None:
    Y = _matrix(0)
    best = dropout_optimum(Y, width, rate)
    weight = rate / (1 - rate) / width
    torch.testing.assert_close(singular_values(best.U @ best.V.mT)[:5], _thresholded(SPECTRUM, weight))
    sizes = best.U.norm(dim=0) * best.V.norm(dim=0)
    assert (sizes.std() / sizes.mean()).item() < 1e-12
    Z = best.U @ best.V.mT
    assert best.objective == pytest.approx(((Y - Z).square().sum() + weight * nuclear_norm(Z).square()).item())
    assert best.objective == pytest.approx(((Y - Z).square().sum() + dropout_penalty(best.U, best.V, rate)).item())


def test_the_adaptive_rate_gives_one_optimum_at_every_width_and_a_fixed_rate_none() -> None:
    Y = _matrix(1)
    adaptive = [dropout_optimum(Y, d, adaptive_rate(0.2, d)).singular_values[:5] for d in (5, 8, 40, 300)]
    assert all(torch.allclose(values, adaptive[0], rtol=1e-10) for values in adaptive)
    torch.testing.assert_close(adaptive[0], _thresholded(SPECTRUM, 0.25))
    assert torch.allclose(dropout_optimum(Y, 3000, 0.5).singular_values[:5], SPECTRUM, atol=0.01)


@given(st.integers(0, 10**6), st.integers(1, 12), st.floats(0.05, 0.95), st.booleans())
@settings(max_examples=25)
def test_the_factors_attain_the_objective_and_random_moves_do_no_better(
    seed: int, width: int, rate: float, with_inputs: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    randn = partial(torch.randn, generator=generator, dtype=torch.float64)
    Y, X = randn(6, 9), randn(5, 9) if with_inputs else None
    best = dropout_optimum(Y, width, rate, inputs=X)

    def objective(U: torch.Tensor, V: torch.Tensor) -> float:
        fit = U @ (V.mT if X is None else V.mT @ X)
        return ((Y - fit).square().sum() + dropout_penalty(U, V, rate, inputs=X)).item()

    assert objective(best.U, best.V) == pytest.approx(best.objective, rel=1e-9)
    for size in (1e-3, 1e-1, 1.0):
        moved = objective(best.U + size * randn(*best.U.shape), best.V + size * randn(*best.V.shape))
        assert moved >= best.objective * (1 - 1e-10)


@pytest.mark.parametrize(("block", "blocks"), [(1, 3), (2, 4), (3, 4), (5, 1), (4, 5)])
def test_gradient_descent_ends_at_the_closed_form_from_every_start(block: int, blocks: int) -> None:
    Y, width = _matrix(2), block * blocks
    best = dropblock_optimum(Y, width, 0.5, block)
    for seed in range(3):
        *_, objective = fit_factors(
            Y,
            width,
            lambda U, V: dropblock_penalty(U, V, 0.5, block),
            generator=torch.Generator().manual_seed(seed),
        )
        assert objective == pytest.approx(best.objective, rel=1e-7)


@pytest.mark.parametrize("block", [2, 3])
def test_dropblocks_optimum_pays_the_squared_k_support_norm_in_equal_blocks(block: int) -> None:
    Y = _matrix(3)
    best = dropblock_optimum(Y, 5 * block, 0.5, block)
    Z = best.U @ best.V.mT
    penalty = dropblock_penalty(best.U, best.V, 0.5, block).item()
    assert penalty == pytest.approx(k_support_norm(Z, block).square().item() / 5)
    left, right = (factor.mT.reshape(5, block, -1) for factor in (best.U, best.V))
    sizes = (left.mT @ right).norm(dim=(1, 2))
    assert (sizes.std() / sizes.mean()).item() < 1e-9


def test_a_width_below_the_rank_gives_the_best_matrix_of_that_rank() -> None:
    best = dropout_optimum(_matrix(4), 2, 0.5)
    torch.testing.assert_close(best.singular_values, _thresholded(SPECTRUM[:2], 0.5))


def test_too_few_blocks_raise_and_training_stays_above_the_bound() -> None:
    Y = torch.tensor([4.0, 2.2, 2.1, 1.9], dtype=torch.float64).diag()  # two planes want values that pair up
    with pytest.raises(ValueError, match="give more blocks") as error:
        dropblock_optimum(Y, 4, 0.2, 2)
    bound = float(str(error.value).rsplit(" ", 1)[1])
    found = min(
        fit_factors(Y, 4, partial(dropblock_penalty, rate=0.2, block=2), generator=torch.Generator().manual_seed(s))[2]
        for s in range(5)
    )
    assert found > bound * 1.001


def test_inputs_that_do_not_span_and_constant_zero_features_are_fine() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(6, 20, generator=generator)
    X[2] = 0
    X[4] = X[3]
    Y = torch.randn(4, 20, generator=generator)
    best = dropout_optimum(Y, 5, 0.3, inputs=X)
    assert best.U.dtype == torch.float32
    assert best.V[2].abs().max() < 1e-6
    fit = best.U @ best.V.mT @ X
    value = (Y - fit).square().sum() + dropout_penalty(best.U, best.V, 0.3, inputs=X)
    assert value.item() == pytest.approx(best.objective, rel=1e-5)


def test_many_samples_of_low_precision_leave_no_direction_out() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(6, 100_000, generator=generator) * torch.logspace(0, -2.5, 6)[:, None]
    Y = torch.randn(3, 6, generator=generator) @ (X / X.norm(dim=1, keepdim=True))
    exact = dropout_optimum(Y.double(), 6, 0.2, inputs=X.double())
    assert dropout_optimum(Y, 6, 0.2, inputs=X).objective == pytest.approx(exact.objective, rel=1e-4)
    short = X[:, :1000].bfloat16() / torch.logspace(0, -1, 6)[:, None].bfloat16()
    exact = dropout_optimum(Y[:, :1000].double(), 6, 0.2, inputs=short.double())
    assert dropout_optimum(Y[:, :1000], 6, 0.2, inputs=short).objective == pytest.approx(exact.objective, rel=1e-4)


@pytest.mark.parametrize("inner", [3, 40])
def test_inputs_of_low_rank_but_for_rounding_take_no_part_in_it(inner: int) -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(60, inner, generator=generator) @ torch.randn(inner, 900, generator=generator)
    assert dropout_optimum(torch.randn(4, 900, generator=generator), 5, 0.2, inputs=X).V.abs().max() < 1


def test_inputs_that_are_zero_or_counts_are_inputs() -> None:
    Y = _matrix(5)
    best = dropblock_optimum(Y, 6, 0.5, 2, inputs=torch.zeros(3, 7))
    assert not best.U.any()
    assert not best.V.any()
    assert best.objective == pytest.approx(Y.square().sum().item())
    counts = torch.arange(21).reshape(3, 7) % 5
    assert (
        dropout_optimum(Y, 4, 0.5, inputs=counts).objective
        == dropout_optimum(Y, 4, 0.5, inputs=counts.double()).objective
    )


def test_rate_zero_is_least_squares_and_a_zero_target_needs_nothing() -> None:
    Y = _matrix(6)
    assert torch.allclose(dropout_optimum(Y, 5, 0.0).U @ dropout_optimum(Y, 5, 0.0).V.mT, Y)
    zero = dropout_optimum(torch.zeros(3, 4), 2, 0.5)
    assert zero.objective == 0.0
    assert not zero.U.any()


@given(st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=8), st.integers(0, 4))
@settings(max_examples=25)
def test_unit_vectors_with_any_diagonal_gram_exist(raw: list[float], extra: int) -> None:
    count = len(raw) + extra
    weights = torch.tensor(raw, dtype=torch.float64)
    weights = weights / weights.sum() * count
    frames = equal_frames(weights, count, 1)
    torch.testing.assert_close((frames @ frames.mT).sum(0), weights.diag(), atol=1e-9, rtol=0)
    torch.testing.assert_close(frames.square().sum((1, 2)), torch.ones(count, dtype=torch.float64))


def test_two_planes_sum_only_to_what_pairs_up() -> None:
    paired = torch.tensor([1.6, 1.3, 0.7, 0.4], dtype=torch.float64)
    frames = equal_frames(paired, 2, 2)
    torch.testing.assert_close((frames @ frames.mT).sum(0), paired.diag())
    assert equal_frames(torch.tensor([1.8, 0.8, 0.8, 0.6], dtype=torch.float64), 2, 2) is None


def test_what_does_not_fit_is_named() -> None:
    Y = _matrix(7)
    with pytest.raises(ValueError, match="rate must be in"):
        dropout_optimum(Y, 4, 1.0)
    with pytest.raises(ValueError, match="width must be at least 1"):
        dropout_optimum(Y, 0, 0.5)
    with pytest.raises(ValueError, match="block must divide the width 4"):
        dropblock_optimum(Y, 4, 0.5, 3)
    with pytest.raises(ValueError, match="a sample in each column"):
        dropout_optimum(Y, 4, 0.5, inputs=torch.ones(3, 2))
    with pytest.raises(ValueError, match="width must be at least 1"):
        fit_factors(Y, 0, lambda U, V: U.sum())
    with pytest.raises(ValueError, match="a sample in each column"):
        fit_factors(Y, 2, lambda U, V: U.sum(), inputs=torch.ones(3, 2))
