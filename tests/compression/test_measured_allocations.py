"""Allocations that run the model: measured sensitivity, chosen layers, the best of several candidates."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from toy_pieces import ToyPiece, no_trial

from eckart.compression.allocations.candidates import CANDIDATES, Chosen, candidates
from eckart.compression.allocations.menus import menu_of
from eckart.compression.allocations.named import ALLOCATIONS, OPTIONS
from eckart.compression.allocations.rules import Sizes, Trial, total_bytes
from eckart.compression.allocations.selected_layers import selected
from eckart.compression.allocations.sensitivity import convex, sensitivity
from eckart.compression.pieces.piece import Piece
from eckart.compression.settings import Settings


class Loss:
    """A fake trial: each piece adds its weight times the share of its rank that is cut, to a power."""

    def __init__(
        self, pieces: list[Piece], weights: Mapping[str, float], power: float = 2.0, base: float = 3.0
    ) -> None:
        self.full = {piece.label: piece.full for piece in pieces}
        self.weights, self.power, self.base = weights, power, 3.0
        self.asked: list[dict[str, int]] = []

    def __call__(self, sizes: Mapping[str, int]) -> float:
        self.asked.append(dict(sizes))
        cut = {label: 1 - sizes[label] / full for label, full in self.full.items()}
        return self.base + sum(self.weights[label] * share**self.power for label, share in cut.items())


def pieces(count: int = 4, cost: str = "pivoted") -> list[Piece]:
    return [ToyPiece(f"p{i}", (20, 20), torch.ones(20), cost=cost) for i in range(count)]


def options(**given: Any) -> Settings:
    return Settings(floor=0.0, options=given)


def test_the_measured_sensitivity_decides_not_the_spectrum() -> None:
    trial = Loss(pieces(), {"p0": 8.0, "p1": 4.0, "p2": 1.0, "p3": 0.5})
    sizes = sensitivity(pieces(), 0.6, options(), trial)
    assert sizes["p0"] >= sizes["p1"] > sizes["p2"] > sizes["p3"]
    assert total_bytes(pieces(), sizes) <= 0.6 * 4 * 1600
    assert len(trial.asked) == 1 + 4 * 4
    assert all(sum(size < 20 for size in asked.values()) <= 1 for asked in trial.asked)


def test_sensitivity_is_near_the_exhaustive_optimum_of_the_measured_losses() -> None:
    two = pieces(2)
    trial = Loss(two, {"p0": 3.0, "p1": 1.0})
    for keep in (0.4, 0.55, 0.7, 0.85):
        sizes = sensitivity(two, keep, options(shares=(0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)), trial)
        offered = itertools.product(range(1, 21), repeat=2)
        best = min(
            trial({"p0": a, "p1": b})
            for a, b in offered
            if total_bytes(two, {"p0": a, "p1": b}) <= keep * sum(piece.dense_bytes for piece in two)
        )
        assert trial(sizes) - trial.base <= 1.2 * (best - trial.base)


def test_progress_is_told_of_every_run() -> None:
    told: list[tuple[int, int, str]] = []
    settings = replace(options(shares=(0.5, 0.8)), progress=lambda *each: told.append(each))
    sensitivity(pieces(2), 0.6, settings, Loss(pieces(2), {"p0": 1.0, "p1": 1.0}))
    assert [done for done, _, _ in told] == [1, 2, 3, 4, 5]
    assert {total for _, total, _ in told} == {5}
    assert [label for _, _, label in told] == ["dense", "p0", "p0", "p1", "p1"]


def test_a_piece_whose_cut_breaks_the_model_stays_larger() -> None:
    fine = Loss(pieces(), dict.fromkeys(("p0", "p1", "p2", "p3"), 1.0))

    def trial(sizes: Mapping[str, int]) -> float:
        return math.nan if sizes["p2"] < 14 else fine(sizes)

    sizes = sensitivity(pieces(), 0.6, options(), trial)
    assert sizes["p2"] > max(sizes["p0"], sizes["p1"], sizes["p3"])


def test_noise_that_lowers_the_loss_counts_as_no_rise_and_convexity_holds() -> None:
    prices = torch.linspace(0, 100, 21, dtype=torch.float64)
    rises = convex([30, 50, 70, 90, 100], [4.0, 5.0, -0.3, 0.6, 0.0], prices)
    assert bool((rises.diff() <= 1e-12).all() and (rises.diff(n=2) >= -1e-12).all())
    assert rises[14] == 0.0 == rises[-1]
    assert float(convex([100], [0.0], prices).abs().max()) == 0.0


@pytest.mark.parametrize("shares", [(), (0.5, 1.0), (0.0,)])
def test_shares_outside_their_range_are_named(shares: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="shares: "):
        sensitivity(pieces(), 0.6, options(shares=shares), no_trial)


@pytest.mark.parametrize("rule", [sensitivity, selected])
def test_a_dense_loss_that_is_no_number_is_an_error(rule: Any) -> None:
    with pytest.raises(ValueError, match="held_out: the dense model's loss"):
        rule(pieces(), 0.6, options(), lambda sizes: math.inf)


def test_few_layers_are_cut_hard_and_the_last_no_further_than_needed() -> None:
    many = pieces(10)
    trial = Loss(many, {f"p{i}": 1.0 + i for i in range(10)})
    sizes = selected(many, 0.75, options(), trial)
    assert [sizes[f"p{i}"] for i in range(3)] == [2, 2, 2]
    assert 2 < sizes["p3"] < 20
    assert all(sizes[f"p{i}"] == 20 for i in range(4, 10))
    budget = 0.75 * 10 * 1600
    assert total_bytes(many, sizes) <= budget < total_bytes(many, sizes | {"p3": sizes["p3"] + 1})
    assert len(trial.asked) == 11


def test_a_cut_that_lowers_the_loss_comes_first_and_one_that_breaks_the_model_last() -> None:
    many = pieces(4)
    fine = Loss(many, {"p0": 1.0, "p1": -0.5, "p2": 2.0, "p3": 0.1})

    def trial(sizes: Mapping[str, int]) -> float:
        return math.nan if sizes["p3"] < 20 else fine(sizes)

    order = [selected(many, keep, options(), trial) for keep in (0.9, 0.6, 0.45)]
    assert [label for label, size in order[0].items() if size < 20] == ["p1"]
    assert [label for label, size in order[1].items() if size < 20] == ["p0", "p1"]
    assert order[2]["p3"] == 20 > order[2]["p2"]


def test_larger_pieces_are_worth_their_bytes() -> None:
    uneven = [ToyPiece("large", (20, 200), torch.ones(20)), *pieces(2, "factors")]
    trial = Loss(uneven, {"large": 1.5, "p0": 1.0, "p1": 1.0})
    assert selected(uneven, 0.5, options(), trial) | {"large": 0} == {"large": 0, "p0": 20, "p1": 20}


def test_a_budget_below_all_cuts_names_the_option() -> None:
    with pytest.raises(ValueError, match=r"with all matrices cut to 0\.5 of their rank .* raise keep or lower cut"):
        selected(pieces(), 0.2, options(cut=0.5), no_trial)
    with pytest.raises(ValueError, match="cut: 1"):
        selected(pieces(), 0.2, options(cut=1), no_trial)


def fixed(size: int) -> Any:
    def rule(pieces: Any, keep: float, settings: Settings, trial: Trial) -> Sizes:
        return {piece.label: size for piece in pieces}

    return rule


def test_the_best_candidate_is_taken_and_the_evidence_kept() -> None:
    losses = {2: 5.0, 3: 1.0, 4: math.nan, 5: 2.0}
    asked: list[int] = []

    def trial(sizes: Mapping[str, int]) -> float:
        asked.append(sizes["p0"])
        return losses[sizes["p0"]]

    among = {"a": fixed(2), "b": fixed(3), "again b": fixed(3), "c": fixed(4), "d": fixed(5)}
    chosen = candidates(pieces(), 0.6, options(), trial, among=among)
    assert chosen == dict.fromkeys(("p0", "p1", "p2", "p3"), 3)
    assert chosen.best == "b"
    assert list(chosen.losses) == list(among)
    assert chosen.losses["again b"] == 1.0
    assert math.isnan(chosen.losses["c"])
    assert asked == [2, 3, 4, 5]  # like sizes are tried once


def test_of_equal_candidates_the_first_is_taken() -> None:
    chosen = candidates(pieces(), 0.6, options(), lambda sizes: 2.0, among={"a": fixed(4), "b": fixed(3)})
    assert chosen.best == "a"
    assert chosen["p0"] == 4


def test_no_finite_loss_warns_and_takes_the_first() -> None:
    with pytest.warns(UserWarning, match="no allocation gives a finite held-out loss"):
        chosen = candidates(pieces(), 0.6, options(), lambda sizes: math.inf, among={"a": fixed(4), "b": fixed(3)})
    assert (chosen.best, chosen["p0"]) == ("a", 4)


def test_no_candidates_are_an_error() -> None:
    with pytest.raises(ValueError, match="among: no candidates"):
        candidates(pieces(), 0.6, options(), no_trial, among={})


def test_every_candidate_is_tried_within_the_budget() -> None:
    uneven: list[Piece] = [
        ToyPiece(f"p{i}", (16 + 4 * i, 20), 10.0**i * 0.8 ** torch.arange(16.0 + min(4 * i, 4))) for i in range(4)
    ]
    trial = Loss(uneven, dict.fromkeys(("p0", "p1", "p2", "p3"), 1.0))
    told: list[str] = []
    chosen = candidates(uneven, 0.6, replace(options(), progress=lambda done, total, name: told.append(name)), trial)
    assert list(chosen.losses) == told == list(CANDIDATES)
    assert trial(chosen) == min(chosen.losses.values())
    assert len({tuple(asked.values()) for asked in trial.asked}) >= 4
    for asked in trial.asked:
        assert total_bytes(uneven, asked) <= 0.6 * sum(piece.dense_bytes for piece in uneven)


def test_the_choice_is_a_plain_dict_beside_its_evidence() -> None:
    chosen = Chosen({"a": 1}, {"uniform": 2.0})
    assert {**chosen} == {"a": 1}
    assert chosen.best == "uniform"


@pytest.mark.parametrize("multiple", [1, 3])
@pytest.mark.parametrize("keep", [0.35, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("name", ALLOCATIONS)
def test_every_allocation_stays_within_its_budget_on_any_mixture(name: str, keep: float, multiple: int) -> None:
    mixed: list[Piece] = [
        ToyPiece("plain", (24, 18), 0.8 ** torch.arange(18.0)),
        ToyPiece("pivoted", (18, 30), 3 * 0.9 ** torch.arange(18.0), cost="pivoted", itemsize=2, fixed=72),
        ToyPiece("double", (20, 20), torch.ones(20), itemsize=8),
        ToyPiece("dead", (12, 40), torch.zeros(12), cost="pivoted"),
        ToyPiece("remainder", (24, 24), 0.7 ** torch.arange(24.0), fixed=400),
    ]
    settings = Settings(multiple=multiple, options=dict(OPTIONS[name]))
    trial = Loss(mixed, {piece.label: 1.0 + i for i, piece in enumerate(mixed)})
    sizes = ALLOCATIONS[name](mixed, keep, settings, trial)
    assert total_bytes(mixed, sizes) <= keep * sum(piece.dense_bytes for piece in mixed)
    for piece in mixed:
        assert sizes[piece.label] in menu_of(piece, multiple).sizes
