"""C6 holds for any seed, and fails with half the penalty or with the nuclear norm in place of the k-support norm."""

import pytest

from eckart.claims.convergence.c6_dropblock import CLAIM, run
from eckart.linalg import prox_vector_k_support_squared
from eckart.regularizers import dropblock_penalty


@pytest.mark.parametrize("seed", [0, 1])
def test_dropblock_is_a_squared_k_support_norm(seed: int) -> None:
    done: list[tuple[int, int]] = []
    result = run(seed, "small", progress=lambda count, total, label: done.append((count, total)))
    assert result.holds, [check for check in result.checks if not check.holds]
    assert done == [(count, 8) for count in range(1, 9)]
    assert CLAIM.run is run


def test_half_the_penalty_fails() -> None:
    assert not run(
        0, "small", penalty=lambda U, V, rate, block, **kwargs: dropblock_penalty(U, V, rate, block, **kwargs) / 2
    ).holds


def test_the_nuclear_norm_in_place_of_the_k_support_norm_fails_for_blocks_and_not_for_columns() -> None:
    result = run(0, "small", prox=lambda values, k, step: prox_vector_k_support_squared(values, 1, step))
    failing = [check.name for check in result.checks if not check.holds]
    assert failing
    assert not any("k = 1" in name for name in failing)
