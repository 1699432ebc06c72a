"""T6 holds for smooth activations, and ReLU in place of GELU breaks it."""

import pytest
from torch.nn import functional as F

from eckart import claims
from eckart.claims.dynamics import t6_nonlinear


@pytest.mark.parametrize("seed", [0, 1])
def test_smooth_networks_train_almost_inside_2k_directions(seed: int) -> None:
    result = claims.run("T6", seed=seed)
    assert result.holds, [check for check in result.checks if not check.holds]
    [half] = [check.measured for check in result.checks if "K × K directions ÷" in check.name]
    assert 1 < half < 1.2  # the second K of the block are hardly needed where the outer layer stays


def test_relu_in_place_of_gelu_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(t6_nonlinear.SIZES, "small", t6_nonlinear.Size(beyond=60))
    result = t6_nonlinear.run(0, "small", activation=F.relu)
    failed = {check.name for check in result.checks if not check.holds}
    assert {
        "σ_{K+1}/σ_1 of the first gradient, relu",
        "its power of ε, relu",
        "energy outside the block up to the fit, relu",
        "loss beside that of the whole layer: rank 2K in the block",
    } <= failed


def test_progress_ends_at_the_total() -> None:
    seen: list[tuple[int, int]] = []
    claims.run("T6", progress=lambda done, total, label: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
