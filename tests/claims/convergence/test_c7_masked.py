"""C7 holds for any seed, and fails where the penalty or the closed form is another one."""

import pytest
import torch
from torch import Tensor

from eckart.claims.convergence.c7_masked import CLAIM
from eckart.regularizers import odds


@pytest.mark.parametrize("seed", [0, 1])
def test_the_linear_masked_autoencoder_is_the_closed_form(seed: int) -> None:
    told: list[tuple[int, int]] = []
    result = CLAIM.run(seed, "small", progress=lambda done, total, label: told.append((done, total)))
    assert result.holds, [check for check in result.checks if not check.holds]
    assert told == [(done, told[0][1]) for done in range(1, told[0][1] + 1)]


def test_a_penalty_without_the_diagonal_fails() -> None:
    def plain(A: Tensor, C: Tensor, *, rate: float) -> Tensor:
        return odds(rate) * A.square().sum()

    failed = {check.name for check in CLAIM.run(0, "small", penalty=plain).checks if not check.holds}
    assert {"masked loss of a random map, mask 0.5", "loss through 2 units, mask 0.5"} <= failed


def test_an_optimum_without_the_diagonal_fails() -> None:
    def plain(C: Tensor, *, rate: float) -> Tensor:
        mean = C.diagonal().mean()
        return C @ torch.linalg.inv(C + odds(rate) * mean * torch.eye(len(C), dtype=C.dtype))

    failed = {check.name for check in CLAIM.run(0, "small", optimum=plain).checks if not check.holds}
    assert {f"‖A − A*‖/‖A*‖ after training, mask {rate}" for rate in (0.25, 0.5, 0.75, 0.9)} <= failed
