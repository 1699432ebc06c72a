"""The small network that follows the large one (T3)."""

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eckart.linalg import factorization_signal
from eckart.theory import (
    completion,
    compress,
    compressed_rates,
    descend,
    factorization,
    factorization_bulk,
    first_gradient,
    low_rank_target,
    orthogonal_weights,
    parameter_counts,
    product,
    trajectory_error,
)


@given(st.integers(1, 3), st.integers(0, 2), st.integers(0, 4), st.integers(2, 4), st.integers(0, 1000))
@settings(max_examples=25)
def test_the_error_is_what_the_bulk_says_at_every_step_for_any_rank_at_least_the_targets(
    rank: int, more: int, bulk: int, depth: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = 2 * (rank + more) + bulk
    target = low_rank_target((size, size), torch.linspace(1.5, 1, rank).tolist(), generator=generator)
    start = orthogonal_weights([size] * (depth + 1), 0.4, generator=generator)
    small = compress(start, factorization_signal(start, target), rank=rank + more, eps=0.4)
    slope = factorization(target)
    rho = factorization_bulk([0.4] * depth, 200, rate=0.05)
    predicted = trajectory_error(rho, size=size, rank=rank + more)
    follow = descend(small, slope, rate=compressed_rates(depth, 0.05))
    for t, ((W, _), (V, _)) in enumerate(islice(zip(descend(start, slope, rate=0.05), follow, strict=True), 201)):
        assert torch.linalg.norm(product(W) - product(V)).item() == pytest.approx(predicted[t].item(), abs=1e-12)


def test_a_rank_below_the_targets_misses_a_singular_value() -> None:
    target = low_rank_target((20, 20), [1.5, 1.2, 1.0])
    start = orthogonal_weights([20] * 4, 0.1)
    slope = factorization(target)
    ends = []
    for rank in (2, 3):
        small = compress(start, factorization_signal(start, target), rank=rank, eps=0.1)
        weights, _ = next(islice(descend(small, slope, rate=compressed_rates(3, 0.2)), 600, None))
        ends.append(torch.linalg.norm(product(weights) - target).item())
    assert ends[0] > 0.9
    assert ends[1] < 3**0.5 * 0.1**3  # ε^L in the r directions that the target does not fill


def test_a_target_seen_in_part_is_followed_from_the_first_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    target = low_rank_target((40, 40), [1.0, 0.8], generator=generator)
    mask = torch.rand(40, 40, generator=generator) < 0.6
    start = orthogonal_weights([40] * 4, 1e-2, generator=generator)
    slope = completion(target, mask)
    errors = {}
    for outer in (0.0, 0.01):
        small = compress(start, first_gradient(start, slope), rank=4, eps=1e-2)
        weights, _ = next(islice(descend(small, slope, rate=compressed_rates(3, 0.5, outer)), 3000, None))
        errors[outer] = (torch.linalg.norm(product(weights) - target) / torch.linalg.norm(target)).item()
    assert errors[0.01] < 0.02 < 0.1 < errors[0.0]  # fixed outer factors stall


def test_outer_factors_at_rate_zero_stay_bit_for_bit() -> None:
    target = low_rank_target((10, 10), [1.0])
    start = orthogonal_weights([10] * 3, 0.3)
    small = compress(start, factorization_signal(start, target), rank=1, eps=0.3)
    weights, _ = next(islice(descend(small, factorization(target), rate=compressed_rates(2, 0.1)), 50, None))
    assert torch.equal(weights[0], small[0])
    assert torch.equal(weights[-1], small[-1])
    assert not torch.equal(weights[1], small[1])


@pytest.mark.parametrize(("size", "depth", "rank"), [(12, 3, 2), (20, 2, 5), (9, 4, 1)])
def test_parameters_are_counted_as_they_are(size: int, depth: int, rank: int) -> None:
    start = orthogonal_weights([size] * (depth + 1), 0.1)
    small = compress(start, low_rank_target((size, size), [1.0]), rank=rank, eps=0.1)
    counts = tuple(sum(W.numel() for W in weights) for weights in (start, small))
    assert parameter_counts(size, depth, rank) == counts


def test_it_works_in_single_precision() -> None:
    start = orthogonal_weights([12] * 4, 0.1, dtype=torch.float32)
    target = low_rank_target((12, 12), [1.0], dtype=torch.float32)
    small = compress(start, factorization_signal(start, target), rank=1, eps=0.1)
    assert {W.dtype for W in small} == {torch.float32}


def test_weights_that_are_not_orthogonal_are_named() -> None:
    start = orthogonal_weights([6] * 3, 0.1)
    signal = low_rank_target((6, 6), [1.0])
    with pytest.raises(ValueError, match=r"weights\[0\].*not eps = 0.2 times an orthogonal"):
        compress(start, signal, rank=1, eps=0.2)
    with pytest.raises(ValueError, match=r"weights\[1\].*orthogonal_weights"):
        compress([start[0], torch.randn(6, 6, dtype=torch.float64)], signal, rank=1, eps=0.1)
    with pytest.raises(ValueError, match=r"weights\[1\] \(4, 6\) must be square; pad"):
        compress([start[0], start[1][:4]], signal, rank=1, eps=0.1)
    with pytest.raises(ValueError, match="needs weights"):
        compress([], signal, rank=1, eps=0.1)


@pytest.mark.parametrize("eps", [0.0, -0.1])
def test_a_scale_that_is_not_positive_is_named(eps: float) -> None:
    with pytest.raises(ValueError, match="eps > 0"):
        compress(orthogonal_weights([6] * 3, 0.1), low_rank_target((6, 6), [1.0]), rank=1, eps=eps)


def test_ranks_and_shares_out_of_range_are_named() -> None:
    start = orthogonal_weights([6] * 3, 0.1)
    with pytest.raises(ValueError, match="rank must be at most n/2 = 3"):
        compress(start, low_rank_target((6, 6), [1.0]), rank=4, eps=0.1)
    with pytest.raises(ValueError, match="rank must be from 0 to size/2 = 3"):
        trajectory_error(torch.ones(3), size=6, rank=4)
    with pytest.raises(ValueError, match="outer is the share"):
        compressed_rates(3, 0.1, outer=-1.0)
