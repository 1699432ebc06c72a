"""Surrogates are unbiased, and their leading subspaces near the target's."""

import pytest
import torch

from eckart.linalg import overlap, truncated_svd
from eckart.theory import completion_surrogate, low_rank_target, sensing_surrogate, spectral_rates


def test_the_mean_of_surrogates_over_masks_is_the_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    masks = torch.rand(4000, 6, 5, generator=generator) < 0.5
    mean = torch.stack([completion_surrogate(target, mask) for mask in masks]).mean(dim=0)
    torch.testing.assert_close(mean, target, atol=0.1, rtol=0.05)


def test_the_mean_of_a_sensing_surrogate_is_the_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    operators = torch.randn(40_000, 4, 3, generator=generator, dtype=torch.float64)
    surrogate = sensing_surrogate(operators, torch.tensordot(operators, target, dims=2))
    torch.testing.assert_close(surrogate, target, atol=0.08, rtol=0)


def test_the_surrogates_leading_subspace_is_near_the_targets() -> None:
    target = low_rank_target((120, 120), [1.0, 0.9])
    mask = torch.rand(120, 120, generator=torch.Generator().manual_seed(1)) < 0.4
    U = truncated_svd(completion_surrogate(target, mask), 2)[0]
    assert overlap(U, truncated_svd(target, 2)[0]) > 0.9


def test_what_was_not_observed_does_not_matter() -> None:
    observed = torch.tensor([[1.0, float("nan")]])
    assert completion_surrogate(observed, torch.tensor([[1, 0]])).tolist() == [[2.0, 0.0]]


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2\) and mask \(2, 3\) must have one shape"):
        completion_surrogate(torch.zeros(2, 2), torch.ones(2, 3))
    with pytest.raises(ValueError, match="has no entry"):
        completion_surrogate(torch.zeros(2, 2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="k ≥ 1"):
        sensing_surrogate(torch.zeros(2, 2, 2), torch.zeros(3))
    with pytest.raises(ValueError, match="depth must be at least 2"):
        spectral_rates(1, 0.1)
