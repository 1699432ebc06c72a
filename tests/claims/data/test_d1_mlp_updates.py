"""D1 holds on digits, and neither ReLU nor gradients of noise pass for a smooth network's."""

import pytest
import torch
from torch import Tensor, nn

from eckart import claims
from eckart.claims.data import d1_mlp_updates


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_mlp_moves_its_matrices_in_few_directions(seed: int) -> None:
    result = claims.run("D1", seed=seed)
    assert result.holds, [check for check in result.checks if not check.holds]


def test_relu_in_place_of_gelu_fails_it() -> None:
    result = d1_mlp_updates.run(0, "small", activation=nn.ReLU)
    failed = {check.name for check in result.checks if not check.holds}
    assert "energy of the first step outside K directions" in failed
    assert "the same, beside random errors on the same inputs, worst layer" in failed


def test_noise_in_place_of_gradients_fails_it(generator: torch.Generator) -> None:
    def noise(G: Tensor) -> Tensor:
        return torch.randn(G.shape, generator=generator) * G.norm() / G.numel() ** 0.5

    result = d1_mlp_updates.run(0, "small", change=noise)
    held = {check.name for check in result.checks if check.holds}
    assert held <= {"stops: the same with Adam"}
