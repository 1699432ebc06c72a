"""The table of budgets counts what the suggested ranks really keep."""

import pytest

from eckart.report.budgets import choices
from eckart.spectra import Profile


def test_the_parameters_kept_stay_within_the_budget(profile: Profile) -> None:
    for choice in choices(profile, (0.9, 0.5)):
        assert 0 < choice.share <= choice.budget
        assert choice.share == pytest.approx(
            choice.parameters / sum(e.shape[0] * e.shape[1] for e in kept(profile, choice))
        )


def kept(profile: Profile, choice: object) -> list:
    return [e for e in profile.entries if e.of == "weights" and e.name in choice.ranks]  # type: ignore[attr-defined]


def test_a_larger_budget_keeps_more_energy(profile: Profile) -> None:
    large, small = choices(profile, (0.8, 0.3))
    assert large.energy is not None
    assert small.energy is not None
    assert 1 >= large.energy > small.energy > 0


def test_the_whole_budget_keeps_everything(profile: Profile) -> None:
    (whole,) = choices(profile, (1.0,))
    assert whole.energy == pytest.approx(1.0)


def test_a_budget_that_a_fast_profile_cannot_judge_carries_the_reason(fast_profile: Profile) -> None:
    (choice,) = choices(fast_profile, (0.9,))
    assert choice.ranks == {}
    assert "mode='full'" in choice.reason
