"""D3 holds on SmolLM2-135M, and gradients of noise do not pass for its own."""

import pytest
import torch
from torch import Tensor

from eckart import claims
from eckart.claims.data import d3_smollm2_updates


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_fine_tuning_changes_each_matrix_in_a_handful_of_directions(seed: int) -> None:
    result = claims.run("D3", seed=seed)
    assert result.holds, [check for check in result.checks if not check.holds]


@pytest.mark.slow
def test_noise_in_place_of_gradients_fails_it(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    def noise(G: Tensor) -> Tensor:
        return torch.randn(G.shape, generator=generator) * G.norm() / G.numel() ** 0.5

    monkeypatch.setitem(d3_smollm2_updates.SIZES, "small", d3_smollm2_updates.Size(steps=1))
    result = d3_smollm2_updates.run(0, "small", change=noise)
    failed = {check.name for check in result.checks if not check.holds}
    assert {
        "stable rank, beside a random update's, worst matrix and step",
        "energy in 16 directions, worst matrix and step",
        "the same, times that of a random update, worst matrix",
    } <= failed
