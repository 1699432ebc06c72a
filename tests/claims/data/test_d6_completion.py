"""D6 holds for any seed, and fails for a completion that learns nothing but the means."""

from functools import partial

import pytest

from eckart.claims.data import d6_completion
from eckart.claims.data.d6_completion import CLAIM, SIZES, run
from eckart.theory import complete_matrix

pytest.importorskip("sklearn")


@pytest.mark.parametrize("seed", [0, 1])
def test_deep_completion_beats_a_tuned_soft_impute_on_digits(seed: int) -> None:
    result = run(seed, "small")
    assert result.holds, [check for check in result.checks if not check.holds]
    assert 0 < result.checks[0].measured < 4
    assert CLAIM.run is run


def test_a_completion_that_is_not_trained_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(d6_completion.SIZES, "small", SIZES["small"]._replace(rows=200, hidden=(0.7,), ranks=(10,)))
    assert not run(0, "small", complete=partial(complete_matrix, steps=1)).holds
