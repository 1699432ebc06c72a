"""D4 holds for any seed, and fails where the layers that are called dropout drop less than they should."""

import pytest

from eckart.claims.data.d4_dropout_rank import CLAIM, SIZES, Sizes, run


@pytest.mark.parametrize("seed", [0, 1])
def test_dropout_lowers_the_rank_of_what_is_learned_on_digits(seed: int) -> None:
    done: list[tuple[int, int]] = []
    result = run(seed, "small", progress=lambda count, total, label: done.append((count, total)))
    assert result.holds, [check for check in result.checks if not check.holds]
    assert done == [(count, 10) for count in range(1, 11)]
    assert CLAIM.run is run


def test_no_dropout_in_training_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "small", Sizes(300, 60, 1))
    result = run(0, "small", rate_in_training=lambda rate: 0.0)
    failing = [check.name for check in result.checks if not check.holds]
    assert any("closed form" in name for name in failing)
    assert any("MLP" in name for name in failing)
