"""T3 holds for any seed, and fails with a bulk that is off by a millionth."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from eckart.claims.dynamics.t3_compression import CLAIM, run


@pytest.mark.parametrize("seed", [0, 1])
def test_the_small_network_follows_the_large_one_to_the_predicted_error(seed: int) -> None:
    seen: list[tuple[int, int]] = []
    result = run(seed, "small", progress=lambda done, total, label: seen.append((done, total)))
    assert result.holds, [check for check in result.checks if not check.holds]
    assert result.checks[0].measured == pytest.approx(9.4868e-6, rel=1e-5)  # √90 · 1e-6
    assert seen[-1][0] == seen[-1][1]
    assert CLAIM.run is run


def test_a_bulk_that_does_not_shrink_fails() -> None:
    def still(start: Sequence[float], steps: int, *, rate: float) -> Tensor:
        return torch.tensor(start, dtype=torch.float64).expand(steps + 1, -1)

    assert not run(0, "small", bulk=still).holds
