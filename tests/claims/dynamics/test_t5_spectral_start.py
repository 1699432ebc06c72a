"""T5 holds for any seed, and fails from subspaces that are not the surrogate's."""

import pytest
import torch
from torch import Tensor

from eckart.claims.dynamics import t5_spectral_start
from eckart.claims.dynamics.t5_spectral_start import CLAIM, SIZES, run
from eckart.linalg import spectral_start


@pytest.mark.parametrize("seed", [0, 1])
def test_the_compressed_network_is_never_behind(seed: int) -> None:
    seen: list[tuple[int, int]] = []
    result = run(seed, "small", progress=lambda done, total, label: seen.append((done, total)))
    assert result.holds, [check for check in result.checks if not check.holds]
    assert seen[-1][0] == seen[-1][1]
    assert CLAIM.run is run


def test_from_random_subspaces_the_claim_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    short = tuple(case._replace(dimension=30, measurements=min(case.measurements, 100)) for case in SIZES["small"])
    monkeypatch.setitem(t5_spectral_start.SIZES, "small", short)
    monkeypatch.setattr(t5_spectral_start, "DRAWS", 1)

    def random(surrogate: Tensor, rank: int, depth: int, eps: float) -> list[Tensor]:
        noise = torch.randn(surrogate.shape, generator=torch.Generator().manual_seed(5), dtype=surrogate.dtype)
        return spectral_start(noise, rank, depth, eps)

    assert not run(0, "small", start=random).holds
