"""The table of budgets counts what the suggested ranks really keep."""

import pytest
import torch

import eckart
from eckart.report.budgets import choices, source
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


def test_a_zero_matrix_keeps_all_it_has_at_rank_zero() -> None:
    zero, other = (torch.nn.Linear(8, 8, bias=False) for _ in range(2))
    torch.nn.init.zeros_(zero.weight)
    torch.nn.init.eye_(other.weight)
    (choice,) = choices(eckart.measure(torch.nn.Sequential(zero, other)), (0.5,))
    assert choice.ranks == {"0": 0, "1": 8}
    assert (choice.parameters, choice.energy) == (64, 1.0)


def test_ranks_come_from_the_weights_also_where_activations_were_measured_first(profile: Profile) -> None:
    turned = Profile(profile.entries[::-1], "full", "turned", {})
    assert turned.kinds == ["activations", "weights"]
    assert source(turned) == "weights"
    assert choices(turned, (0.8,)) == choices(profile, (0.8,))


def test_a_profile_of_activations_alone_carries_the_reason(profile: Profile) -> None:
    inputs = [entry for entry in profile.entries if entry.of == "activations"]
    (choice,) = choices(Profile(inputs, "full", "inputs", {}), (0.8,))
    assert choice.ranks == {}
    assert "activations" in choice.reason
