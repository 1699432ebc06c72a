"""T7 holds for any seed, and fails with another exponent."""

import pytest

from eckart.claims.dynamics.t7_features import CLAIM, run
from eckart.theory import compression_ratio


@pytest.mark.parametrize("seed", [0, 1])
def test_every_layer_compresses_by_the_predicted_ratio(seed: int) -> None:
    seen: list[tuple[int, int]] = []
    result = run(seed, "small", progress=lambda done, total, label: seen.append((done, total)))
    assert result.holds, [check for check in result.checks if not check.holds]
    assert seen[-1][0] == seen[-1][1]
    assert CLAIM.run is run
    # The numbers of an independent simulation.
    slopes = [check.measured for check in result.checks if check.name.startswith("D_(l+1)/D_l, L")]
    assert slopes == pytest.approx([0.136, 0.167, 0.186, 0.034], rel=0.02)


def test_another_exponent_fails() -> None:
    result = run(0, "small", ratio=lambda eps, samples, depth: compression_ratio(eps, samples, depth - 1))
    assert not result.holds
