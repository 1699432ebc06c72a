"""T8 holds for any seed, and fails with another law of decay."""

import pytest
from torch import Tensor

from eckart.claims.dynamics.t8_gradients import CLAIM, run
from eckart.theory import gradient_at


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_the_stable_rank_decays_as_the_closed_form_says(seed: int) -> None:
    seen: list[tuple[int, int]] = []
    result = run(seed, "small", progress=lambda done, total, label: seen.append((done, total)))
    assert result.holds, [check for check in result.checks if not check.holds]
    assert seen[-1][0] == seen[-1][1]
    assert CLAIM.run is run
    ranks = [check.measured for check in result.checks[:4]]
    assert ranks[0] > 6
    assert 1 <= ranks[3] < 1.02


def test_a_decay_by_one_eigenvalue_only_fails() -> None:
    def other(G: Tensor, B: Tensor, C: Tensor, *, rate: float, times: Tensor) -> Tensor:
        return gradient_at(G, B, C @ C, rate=rate, times=times)

    failed = [check.name for check in run(0, "small", closed_form=other).checks if not check.holds]
    assert failed == [f"stable rank of the gradient at t = {t}" for t in (20, 100, 400)]
