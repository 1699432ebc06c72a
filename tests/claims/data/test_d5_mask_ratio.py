"""D5 holds for any seed, and fails where nothing is masked."""

import pytest

from eckart.claims.data.d5_mask_ratio import CLAIM


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_effective_rank_falls_with_the_mask_ratio(seed: int) -> None:
    result = CLAIM.run(seed, "small")
    assert result.holds, [check for check in result.checks if not check.holds]


@pytest.mark.slow
def test_the_same_ratio_everywhere_fails() -> None:
    failed = {check.name for check in CLAIM.run(0, "small", masking=lambda rate: 0.0).checks if not check.holds}
    assert "effective rank at mask 0.9 over that at 0" in failed
    assert "probe's accuracy at the best mask ratio less that at 0" in failed
