"""C3 holds for any seed and fails with another threshold or rate."""

import pytest

from eckart.claims.convergence.c3_attention import SIZES, run


@pytest.mark.parametrize("seed", [0, 1])
def test_weight_decay_on_attention_is_a_nuclear_norm(seed: int) -> None:
    done: list[tuple[int, int]] = []
    result = run(seed, "small", progress=lambda count, total, label: done.append((count, total)))
    assert result.holds, [check for check in result.checks if not check.holds]
    assert done == [(count, 4) for count in range(1, 5)]


@pytest.mark.parametrize("wrong", [{"threshold": 1.0}, {"exponent": 1.0}])
def test_the_wrong_threshold_or_rate_fails(wrong: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "small", SIZES["small"]._replace(attention_steps=1))  # not what is broken
    failed = [
        check.name for check in run(0, "small", **wrong).checks if not check.holds and "attention" not in check.name
    ]
    assert failed
    assert all(("σ_" if "threshold" in wrong else "rate") in name for name in failed)
