"""Targets and data on which the theorems are exact."""

import pytest
import torch

from eckart.theory import balanced_classes, low_rank_target, whiten


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_a_target_has_the_singular_values_that_were_asked_for(shape: tuple[int, int]) -> None:
    target = low_rank_target(shape, [3.0, 0.5])
    expected = torch.tensor([3.0, 0.5] + [0.0] * (min(shape) - 2), dtype=torch.float64)
    torch.testing.assert_close(torch.linalg.svdvals(target), expected)
    assert low_rank_target(shape, [1.0], dtype=torch.float32).dtype == torch.float32
    assert not torch.allclose(target, low_rank_target(shape, [3.0, 0.5], generator=torch.Generator().manual_seed(1)))


def test_white_data_has_orthonormal_rows_that_span_the_same_space() -> None:
    X = torch.randn(4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    white = whiten(X)
    torch.testing.assert_close(white @ white.mT, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(X @ white.mT @ white, X)


def test_classes_are_balanced_and_one_hot() -> None:
    inputs, targets, labels = balanced_classes(7, 3, 5)
    assert inputs.shape == (7, 15)
    assert labels.bincount().tolist() == [5, 5, 5]
    assert torch.equal(targets.argmax(dim=0), labels)
    assert torch.equal(targets.sum(dim=0), torch.ones(15, dtype=torch.float64))


def test_what_cannot_be_made_is_named() -> None:
    with pytest.raises(ValueError, match="values must be 1 to 3"):
        low_rank_target((3, 4), [1.0] * 4)
    with pytest.raises(ValueError, match="values must be 1 to 3"):
        low_rank_target((3, 4), [])
    with pytest.raises(ValueError, match="N ≥ n to be whitened"):
        whiten(torch.ones(4, 3))
