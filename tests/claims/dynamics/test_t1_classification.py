"""T1 holds for any seed, and fails with another recursion of the bulk."""

import pytest
import torch
from torch import Tensor

from eckart.claims.dynamics.t1_classification import CLAIM, run
from eckart.theory import classification_bulk, factorization_bulk


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_only_2k_directions_move_and_the_rest_decays_as_predicted(seed: int) -> None:
    seen: list[tuple[int, int]] = []
    result = run(seed, "small", progress=lambda done, total, label: seen.append((done, total)))
    assert result.holds, [check for check in result.checks if not check.holds]
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == seen[0][1]
    assert CLAIM.run is run


def test_the_bulk_of_a_factorization_fails() -> None:
    def other(start: float, steps: int, *, rate: float, decay: float) -> Tensor:
        return factorization_bulk([start] * 3, steps, rate=rate, decay=decay)[:, 0]

    assert not run(0, "small", bulk=other).holds


def test_a_bulk_that_forgets_the_decay_fails() -> None:
    def other(start: float, steps: int, *, rate: float, decay: float) -> Tensor:
        return classification_bulk(start, steps, rate=rate)

    failed = {check.name for check in run(0, "small", bulk=other).checks if not check.holds}
    assert failed == {"largest error of the bulk ρ(t) I, λ = 0.01"}


def test_the_figure_is_finite_and_short() -> None:
    for panel in run(0, "small").panels:
        for line in panel.lines:
            assert len(line.x) == len(line.y) <= 200
            assert torch.tensor(line.y).isfinite().all()
