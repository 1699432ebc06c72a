"""T4 holds for any seed, fails with fixed outer factors, and goes on bit for bit after an interruption."""

from pathlib import Path

import pytest

from eckart.claims import Result
from eckart.claims.dynamics import race, t4_completion
from eckart.claims.dynamics.t4_completion import CLAIM, run


def _numbers(result: Result) -> list[float]:
    """What does not depend on the clock."""
    return [check.measured for check in result.checks if "time" not in check.name]


@pytest.mark.parametrize("seed", [0, 1])
def test_completion_recovers_with_slow_outer_factors_and_stalls_without(seed: int) -> None:
    seen: list[tuple[int, int]] = []
    result = run(seed, "small", progress=lambda done, total, label: seen.append((done, total)))
    assert result.holds, [check for check in result.checks if not check.holds]
    assert seen[-1][0] == seen[-1][1] == max(total for _, total in seen)
    assert CLAIM.run is run
    assert CLAIM.resumable


def test_with_fixed_outer_factors_the_claim_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(t4_completion.SIZES, "small", t4_completion.SIZES["small"]._replace(steps=1200))
    assert not run(0, "small", outer=0.0).holds


def test_an_interrupted_run_goes_on_bit_for_bit_and_knows_its_own_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race, "SAVE_EVERY", -1.0)
    short = t4_completion.SIZES["small"]._replace(dimension=40, rank=2, steps=200, every=20)
    monkeypatch.setitem(t4_completion.SIZES, "small", short)

    def interrupt(done: int, total: int, label: str) -> None:
        if done >= 300:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(0, "small", folder=tmp_path, progress=interrupt)
    seen: list[int] = []
    resumed = run(0, "small", folder=tmp_path, progress=lambda done, total, label: seen.append(done))
    assert seen[0] >= 300
    assert _numbers(resumed) == _numbers(run(0, "small"))
    with pytest.raises(ValueError, match=r"another run.*empty folder"):
        run(1, "small", folder=tmp_path)
