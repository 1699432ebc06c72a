"""C5 holds for any seed, and fails with half the penalty or with the mask on the other layer."""

import pytest
from torch import nn

from eckart.claims.convergence.c5_dropconnect import CLAIM, run
from eckart.regularizers import DropConnect, dropout_penalty


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_dropconnect_is_dropout_in_expectation(seed: int) -> None:
    done: list[int] = []
    result = run(seed, "small", progress=lambda count, total, label: done.append(count / total))
    assert result.holds, [check for check in result.checks if not check.holds]
    assert done[-1] == 1
    assert CLAIM.run is run


def test_half_the_penalty_fails() -> None:
    assert not run(0, "small", penalty=lambda U, V, rate, inputs: dropout_penalty(U, V, rate, inputs=inputs) / 2).holds


def test_the_mask_on_the_first_layer_fails() -> None:
    def on_first(first: nn.Linear, second: nn.Linear, rate: float) -> nn.Module:
        return nn.Sequential(DropConnect(first, rate), second)

    assert not run(0, "small", law=on_first).holds
