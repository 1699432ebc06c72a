"""C2 holds for any seed and fails with another exponent."""

import pytest

from eckart.claims.convergence.c2_schatten import run
from eckart.regularizers import decay_optimum


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_deep_factors_with_weight_decay_end_at_the_schatten_optimum(seed: int) -> None:
    done: list[int] = []
    result = run(seed, "small", progress=lambda count, total, label: done.append(count))
    assert result.holds, [check for check in result.checks if not check.holds]
    assert done == [1, 2]


def test_the_values_are_the_papers() -> None:
    measured = {check.name: check.measured for check in run(0, "small").checks}
    assert [round(measured[f"σ_{i}, L = 3"], 4) for i in range(1, 6)] == [2.9301, 1.9195, 0.8963, 0.3593, 0.0]
    assert [round(measured[f"σ_{i}, L = 4"], 4) for i in range(1, 6)] == [2.9417, 1.928, 0.8943, 0.0, 0.0]


def test_the_nuclear_exponent_fails() -> None:
    assert not run(0, "small", predict=lambda target, _depth, decay: decay_optimum(target, 2, decay)).holds
