"""C1 holds for any seed and fails with another threshold."""

import pytest
from torch import Tensor

from eckart.claims.convergence.c1_nuclear import CLAIM, run
from eckart.regularizers import DecayOptimum, decay_optimum


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_two_factors_with_weight_decay_end_at_the_soft_threshold(seed: int) -> None:
    done: list[int] = []
    result = run(seed, "small", progress=lambda count, total, label: done.append(count))
    assert result.holds, [check for check in result.checks if not check.holds]
    assert done == [1, 2, 3, 4]
    assert CLAIM.run is run


def test_half_the_threshold_fails() -> None:
    def halved(target: Tensor, depth: int, decay: float) -> DecayOptimum:
        return decay_optimum(target, depth, decay / 2)

    assert not run(0, "small", predict=halved).holds


def test_another_exponent_fails() -> None:
    assert not run(0, "small", predict=lambda target, depth, decay: decay_optimum(target, depth + 1, decay)).holds
