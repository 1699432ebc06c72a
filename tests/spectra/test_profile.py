"""A profile keeps what was measured, suggests ranks within the budget, compares, and survives the disk."""

from pathlib import Path

import pytest
import torch
from torch import nn

import eckart
from eckart import Profile
from families import families


@pytest.fixture(scope="module")
def profile() -> Profile:
    return eckart.measure(families()["llama"]()[0])


def _cost(profile: Profile, ranks: dict[str, int], pivoted: bool = False) -> tuple[int, int]:
    shapes = {e.name: e.shape for e in profile.entries}
    paid = dense = 0
    for name, r in ranks.items():
        m, n = shapes[name]
        paid += m * n if r == min(m, n) else r * (m + n - (r if pivoted else 0))
        dense += m * n
    return paid, dense


@pytest.mark.parametrize("budget", [0.1, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("cost", ["factors", "pivoted"])
def test_suggested_ranks_keep_the_budget(profile: Profile, budget: float, cost: str) -> None:
    ranks = profile.suggest_ranks(budget, cost=cost)
    paid, dense = _cost(profile, ranks, cost == "pivoted")
    assert paid <= budget * dense
    assert paid >= 0.9 * budget * dense or budget < 0.2
    assert all(name.startswith("model.layers.") for name in ranks)


def test_suggested_ranks_spend_on_the_flat_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    flat, steep = nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False)
    Q, _ = torch.linalg.qr(torch.randn(32, 32, generator=generator))
    flat.weight.data, steep.weight.data = Q.clone(), Q * torch.arange(1, 33.0) ** -2.0
    ranks = eckart.measure(nn.Sequential(flat, steep)).suggest_ranks(0.6, dense=False)
    assert ranks["0"] > ranks["1"]
    ranks = eckart.measure(nn.Sequential(flat, steep)).suggest_ranks(0.6, dense=False, weights={"1": 1e6})
    assert ranks["1"] > ranks["0"]


def test_targets_bring_the_embedding_in(profile: Profile) -> None:
    assert "model.embed_tokens" in profile.suggest_ranks(0.9, targets="*")
    assert list(profile.suggest_ranks(0.9, targets="q_proj")) == [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]


def test_fast_profiles_suggest_what_they_know_and_refuse_the_rest() -> None:
    steep = nn.Linear(64, 64, bias=False)
    Q, _ = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))
    steep.weight.data = Q * torch.arange(1, 65.0) ** -1.0
    model = nn.Sequential(steep)
    full, fast = eckart.measure(model), eckart.measure(model, mode="fast")
    assert fast.suggest_ranks(0.2, dense=False) == full.suggest_ranks(0.2, dense=False)
    for arguments in (
        {"budget": 0.9, "dense": False},
        {"budget": 0.2},
        {"budget": 0.2, "dense": False, "cost": "pivoted"},
    ):
        with pytest.raises(ValueError, match="mode='full'"):
            fast.suggest_ranks(**arguments)


@pytest.mark.parametrize("budget", [0, -0.1, 1.5])
def test_a_budget_outside_its_range_is_an_error(profile: Profile, budget: float) -> None:
    with pytest.raises(ValueError, match="budget must be in"):
        profile.suggest_ranks(budget)


def test_suggesting_from_what_was_not_measured_names_what_was(profile: Profile) -> None:
    with pytest.raises(ValueError, match=r"of='gradients'.*\['weights'\]"):
        profile.suggest_ranks(0.5, of="gradients")


@pytest.mark.parametrize("mode", ["full", "fast"])
def test_a_saved_profile_comes_back_the_same(tmp_path: Path, mode: str) -> None:
    model, batches = families()["llama"]()
    before = eckart.measure(model, batches=batches, mode=mode)
    before.save(tmp_path / "p")
    after = Profile.load(tmp_path / "p")
    assert (after.mode, after.source, after.kinds) == (before.mode, before.source, before.kinds)
    assert after.rows() == before.rows()
    assert all(torch.equal(a.values, b.values) for a, b in zip(after.entries, before.entries, strict=True))


def test_saving_twice_needs_force_and_damage_is_named(tmp_path: Path, profile: Profile) -> None:
    profile.save(tmp_path / "p")
    with pytest.raises(FileExistsError):
        profile.save(tmp_path / "p")
    profile.save(tmp_path / "p", force=True)
    spectra = tmp_path / "p" / "spectra.safetensors"
    spectra.write_bytes(spectra.read_bytes()[:50])
    with pytest.raises(ValueError, match="damaged"):
        Profile.load(tmp_path / "p")
    with pytest.raises(FileNotFoundError, match=r"profile\.json"):
        Profile.load(tmp_path)


def test_compare_sees_what_moved_and_what_is_missing() -> None:
    before, _ = families()["sequential"]()
    after, _ = families()["sequential"]()
    after[2].weight.data *= 2
    rows = {r["name"]: r for r in eckart.measure(before).compare(eckart.measure(after, exclude="4"))}
    assert rows["0"]["spectrum_distance"] == 0
    assert rows["2"]["spectrum_distance"] == pytest.approx(1, rel=1e-6)
    assert rows["2"]["norm_after"] == pytest.approx(2 * rows["2"]["norm_before"], rel=1e-6)
    assert (rows["4"]["present"], rows["4"]["norm_after"], rows["4"]["spectrum_distance"]) == ("before", None, None)


def test_ranks_are_not_chosen_from_what_is_no_matrix_of_the_model() -> None:
    model, batches = families()["llama"]()
    with pytest.raises(ValueError, match="ranks are chosen from"):
        eckart.measure(model, batches=batches, of="activations").suggest_ranks(0.5)


def test_unknown_weights_are_named_and_a_zero_matrix_gets_rank_zero() -> None:
    model, _ = families()["sequential"]()
    model[2].weight.data.zero_()
    profile = eckart.measure(model)
    assert profile.suggest_ranks(0.9)["2"] == 0
    with pytest.raises(ValueError, match="weights names"):
        profile.suggest_ranks(0.9, weights={"zero": 2.0})


def test_limits_of_the_ranks_are_kept(profile: Profile) -> None:
    ranks = profile.suggest_ranks(0.5, floor=2, ceiling=8, multiple=2)
    assert all(2 <= rank <= 8 and rank % 2 == 0 for rank in ranks.values())


def test_forcing_a_save_does_not_delete_a_folder_that_holds_no_profile(tmp_path: Path, profile: Profile) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(FileExistsError):
        profile.save(tmp_path, force=True)
    assert (tmp_path / "thesis.txt").read_text() == "years"
