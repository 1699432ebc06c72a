"""D2 holds on digits, and gradients of noise do not pass for a network's."""

import pytest
import torch
from torch import Tensor

from eckart import claims
from eckart.claims.data import d2_conv_updates


@pytest.mark.parametrize("seed", [0, 1])
def test_a_convolutional_net_moves_its_kernels_in_few_directions(seed: int) -> None:
    result = claims.run("D2", seed=seed)
    assert result.holds, [check for check in result.checks if not check.holds]


def test_noise_in_place_of_gradients_fails_it(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    def noise(G: Tensor) -> Tensor:
        return torch.randn(G.shape, generator=generator) * G.norm() / G.numel() ** 0.5

    monkeypatch.setitem(d2_conv_updates.SIZES, "small", d2_conv_updates.Size(steps=60))
    result = d2_conv_updates.run(0, "small", change=noise)
    held = {check.name for check in result.checks if check.holds}
    assert held <= {"stops: energy of the first step outside K directions"}
