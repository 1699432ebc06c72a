"""C4 holds for any seed, and fails with half the penalty or a rate that does not follow the width."""

import pytest

from eckart.claims.convergence.c4_dropout import CLAIM, SIZES, Sizes, run
from eckart.regularizers import dropout_penalty


@pytest.mark.parametrize("seed", [0, 1])
def test_dropout_is_a_squared_nuclear_norm(seed: int) -> None:
    done: list[tuple[int, int]] = []
    result = run(seed, "small", progress=lambda count, total, label: done.append((count, total)))
    assert result.holds, [check for check in result.checks if not check.holds]
    assert done == [(count, 12) for count in range(1, 13)]
    assert CLAIM.run is run


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two widths are enough to fail at."""
    monkeypatch.setitem(SIZES, "small", Sizes(widths=(5, 8), samples=500, steps=10))


@pytest.mark.usefixtures("narrow")
def test_half_the_penalty_fails() -> None:
    result = run(0, "small", penalty=lambda U, V, rate, **kwargs: dropout_penalty(U, V, rate, **kwargs) / 2)
    failing = [check.name for check in result.checks if not check.holds]
    assert any("adds to the loss" in name for name in failing)
    assert any("closed form" in name and "drawn" not in name for name in failing)


@pytest.mark.usefixtures("narrow")
def test_a_rate_that_ignores_the_width_is_not_width_free() -> None:
    result = run(0, "small", rate_at=lambda rate, width: rate)
    assert any("spread" in check.name for check in result.checks if not check.holds)
