"""T2 holds for any seed, and fails with another recursion of the bulk."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from eckart.claims.dynamics.t2_factorization import CLAIM, run


@pytest.mark.parametrize("seed", [0, 1])
def test_every_layer_keeps_its_blocks_and_the_bulk_its_recursion(seed: int) -> None:
    seen: list[tuple[int, int]] = []
    result = run(seed, "small", progress=lambda done, total, label: seen.append((done, total)))
    assert result.holds, [check for check in result.checks if not check.holds]
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    assert CLAIM.run is run
    assert [len(panel.lines) for panel in result.panels] == [8, 3, 3]


def test_another_power_of_rho_fails_where_there_is_more_than_one_layer_to_feel() -> None:
    def other(start: Sequence[float], steps: int, *, rate: float, decay: float) -> Tensor:
        rho = torch.tensor(start, dtype=torch.float64)
        course = [rho]
        for _ in range(steps):
            rho = rho * (1 - rate * decay - rate * rho.prod() / rho)  # Π ρ_k, not its square
            course.append(rho)
        return torch.stack(course)

    result = run(0, "small", bulk=other)
    failed = [check.name for check in result.checks if not check.holds]
    assert len(failed) == 4
    assert all("bulk" in name for name in failed)
