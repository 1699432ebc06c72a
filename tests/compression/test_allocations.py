"""Allocations from spectra: never above the budget, optimal at the corners, floors, multiples, costs, shared heads."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_pieces import ToyPiece, lost, no_trial

from eckart.compression.allocations.menus import menu_of, menus_of
from eckart.compression.allocations.rules import Allocation, Sizes, energy, hulls, total_bytes, uniform
from eckart.compression.pieces.piece import Piece
from eckart.compression.settings import Settings
from eckart.nn import Role

RULES: dict[str, Allocation] = {
    "uniform": uniform,
    "energy": energy,
    "hulls": hulls,
    "hulls, tempered": partial(hulls, power=0.5, floor=0.5),
}
PLAIN = Settings(floor=0.0)


@st.composite
def several(draw: st.DrawFn) -> list[Piece]:
    """Up to four pieces of any shape, cost, dtype and fixed part, some without energy."""
    pieces: list[Piece] = []
    for i in range(draw(st.integers(1, 4))):
        shape = (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
        values = draw(st.lists(st.floats(0, 10, width=16), min_size=min(shape), max_size=min(shape)))
        pieces.append(
            ToyPiece(
                f"p{i}",
                shape,
                sorted(values, reverse=True) if draw(st.booleans()) else [0.0] * min(shape),
                cost=draw(st.sampled_from(["factors", "pivoted"])),
                itemsize=draw(st.sampled_from([2, 4, 8])),
                fixed=draw(st.sampled_from([0, 4 * shape[0]])),
            )
        )
    return pieces


def dense_bytes(pieces: Sequence[Piece]) -> int:
    return sum(piece.dense_bytes for piece in pieces)


def optimum(pieces: Sequence[Piece], keep: float) -> tuple[float, Sizes]:
    """The least error of all choices of sizes within the budget."""
    found = (float("inf"), dict[str, int]())
    for choice in itertools.product(*(range(1, piece.full + 1) for piece in pieces)):
        sizes = dict(zip((piece.label for piece in pieces), choice, strict=True))
        if total_bytes(pieces, sizes) <= keep * dense_bytes(pieces):
            found = min(found, (lost(pieces, sizes), sizes), key=lambda each: each[0])
    return found


def two() -> list[Piece]:
    return [
        ToyPiece("flat", (12, 12), torch.full((12,), 2.0)),
        ToyPiece("steep", (12, 12), 9 * 0.5 ** torch.arange(12.0)),
    ]


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=50)
@given(pieces=several(), keep=st.floats(0.05, 1), multiple=st.integers(1, 4))
def test_the_budget_is_never_exceeded_and_sizes_are_multiples_or_full(
    rule: str, pieces: list[Piece], keep: float, multiple: int
) -> None:
    options = Settings(multiple=multiple)
    smallest = sum(menu_of(piece, multiple).price(0) for piece in pieces)
    if smallest > keep * dense_bytes(pieces):
        with pytest.raises(ValueError, match=r"keep: .* the least that these matrices can take"):
            RULES[rule](pieces, keep, options, no_trial)
        return
    sizes = RULES[rule](pieces, keep, options, no_trial)
    assert list(sizes) == [piece.label for piece in pieces]
    assert total_bytes(pieces, sizes) <= keep * dense_bytes(pieces)
    for piece in pieces:
        size = sizes[piece.label]
        assert size == piece.full or (size % multiple == 0 and piece.bytes(size) < piece.dense_bytes)


@pytest.mark.parametrize("rule", RULES)
def test_everything_is_dense_where_everything_is_kept(rule: str) -> None:
    assert RULES[rule](two(), 1.0, Settings(), no_trial) == {"flat": 12, "steep": 12}


@pytest.mark.parametrize("keep", [0.9, 0.8, 0.6, 0.33])
@pytest.mark.parametrize("shape", [(64, 64), (192, 576), (1536, 576)])
def test_uniform_ranks_of_factors_are_those_of_svd_llm(keep: float, shape: tuple[int, int]) -> None:
    m, n = shape
    pieces = [ToyPiece("w", shape, torch.ones(min(shape))), ToyPiece("v", (n, n), torch.ones(n))]
    assert uniform(pieces, keep, Settings(), no_trial)["w"] == int(keep * m * n / (m + n))


def test_where_a_small_piece_takes_more_than_its_share_uniform_gives_the_others_less() -> None:
    pieces = [ToyPiece("small", (4, 4), torch.ones(4)), ToyPiece("large", (64, 64), torch.ones(64))]
    sizes = uniform(pieces, 0.26, Settings(multiple=8), no_trial)
    assert sizes == {"small": 4, "large": 8}  # of 8 on, the small one is dense
    assert total_bytes(pieces, sizes) <= 0.26 * dense_bytes(pieces)


@settings(max_examples=50)
@given(pieces=several(), keep=st.floats(0.2, 1))
def test_hulls_are_one_step_from_the_exhaustive_optimum(pieces: list[Piece], keep: float) -> None:
    if sum(menu_of(piece).price(0) for piece in pieces) > keep * dense_bytes(pieces) or len(pieces) == 4:
        return
    sizes = hulls(pieces, keep, PLAIN, no_trial)
    step = max(lost([piece], {piece.label: 0}) for piece in pieces)
    assert lost(pieces, sizes) <= optimum(pieces, keep)[0] + step + 1e-9


def corners(pieces: Sequence[Piece]) -> list[float]:
    """The budgets in bytes at which the common walk down the lower hulls of all menus has taken a whole step."""
    steps: list[tuple[float, float]] = []
    for piece in pieces:
        menu = menu_of(piece)
        points = list(zip(menu.prices.tolist(), menu.errors.tolist(), strict=True))
        here = 0
        while here + 1 < len(points):
            rates = [(points[here][1] - y) / (x - points[here][0]) for x, y in points[here + 1 :]]
            best = max(range(len(rates)), key=lambda i: (rates[i], i))
            steps.append((rates[best], points[here + 1 + best][0] - points[here][0]))
            here += 1 + best
    least = sum(menu_of(piece).price(0) for piece in pieces)
    return [least + spent for spent in itertools.accumulate(price for _, price in sorted(steps, reverse=True))]


def test_hulls_are_optimal_at_the_corners_of_the_hulls() -> None:
    pieces = [
        ToyPiece("a", (6, 6), [8, 4, 2, 1, 0.5, 0.25], cost="pivoted"),
        ToyPiece("b", (5, 9), [6, 5, 1, 0.1, 0.1], itemsize=2, fixed=10),
        ToyPiece("c", (9, 9), [5, 4, 3, 2, 1, 1, 1, 1, 1]),
    ]
    budgets = corners(pieces)
    assert len(budgets) > 8
    for budget in budgets:
        keep = (budget + 0.5) / dense_bytes(pieces)
        assert lost(pieces, hulls(pieces, keep, PLAIN, no_trial)) == pytest.approx(optimum(pieces, keep)[0])


@settings(max_examples=25)
@given(pieces=several())
def test_more_budget_never_leaves_more_error(pieces: list[Piece]) -> None:
    start = sum(menu_of(piece).price(0) for piece in pieces) / dense_bytes(pieces)
    keeps = [start + (1 - start) * i / 12 for i in range(1, 13)]
    errors = [lost(pieces, hulls(pieces, keep, PLAIN, no_trial)) for keep in keeps]
    assert all(more <= less + 1e-9 for less, more in itertools.pairwise(errors))


@pytest.mark.parametrize("rule", ["energy", "hulls"])
def test_what_is_left_buys_no_further_step_of_any_piece(rule: str) -> None:
    pieces = [ToyPiece(str(i), (10 + i, 14), 3.0 * 0.7 ** torch.arange(10.0 + i)) for i in range(4)]
    for keep in (0.3, 0.55, 0.8):
        sizes = RULES[rule](pieces, keep, Settings(), no_trial)
        spare = keep * dense_bytes(pieces) - total_bytes(pieces, sizes)
        for piece in pieces:
            menu = menu_of(piece)
            point = menu.upto(sizes[piece.label])
            assert point + 1 == len(menu.sizes) or menu.price(point + 1) - menu.price(point) > spare


def test_energy_keeps_like_shares() -> None:
    pieces = [
        ToyPiece("slow", (40, 40), 0.9 ** torch.arange(40.0), cost="pivoted"),
        ToyPiece("fast", (40, 40), 100 * 0.6 ** torch.arange(40.0), cost="pivoted"),
    ]
    sizes = energy(pieces, 0.5, PLAIN, no_trial)
    kept = [1 - piece.error(sizes[piece.label]) ** 2 for piece in pieces]
    assert sizes["slow"] > 2 * sizes["fast"]
    assert kept[0] == pytest.approx(kept[1], abs=0.01)


def test_the_gather_of_a_pivoted_piece_is_paid_by_those_that_are_not_dense_alone() -> None:
    shape, fixed = (16, 16), 64
    important = ToyPiece("important", shape, torch.full((16,), 100.0), cost="pivoted", fixed=fixed)
    other = ToyPiece("other", shape, torch.ones(16), cost="pivoted", fixed=fixed)
    budget = important.dense_bytes + other.bytes(5)
    sizes = hulls([important, other], budget / (2 * important.dense_bytes), PLAIN, no_trial)
    assert sizes == {"important": 16, "other": 5}


def test_a_piece_with_a_remainder_may_have_no_product_beside_it() -> None:
    piece = ToyPiece("codes", (16, 16), torch.linspace(3, 1, 16), fixed=256)
    piece.smallest = 0
    assert menu_of(piece, 4).sizes.tolist() == [0, 4, 16]
    assert hulls([piece], 0.25, PLAIN, no_trial) == uniform([piece], 0.25, PLAIN, no_trial) == {"codes": 0}


def test_a_piece_of_half_the_bytes_for_a_number_is_cheaper_to_keep() -> None:
    spectrum = torch.linspace(3, 1, 16)
    pieces = [ToyPiece("half", (16, 16), spectrum, itemsize=2), ToyPiece("single", (16, 16), spectrum, itemsize=4)]
    sizes = hulls(pieces, 0.5, PLAIN, no_trial)
    assert sizes["half"] == 16 > sizes["single"]


def test_without_energy_a_piece_gets_its_floor_and_no_more() -> None:
    pieces = [ToyPiece("dead", (20, 20), torch.zeros(20)), ToyPiece("live", (20, 20), torch.linspace(3, 1, 20))]
    for rule in (energy, hulls):
        assert rule(pieces, 0.6, PLAIN, no_trial)["dead"] == 1
        floored = rule(pieces, 0.6, Settings(floor=0.5), no_trial)["dead"]
        assert floored == menu_of(pieces[0]).size(menu_of(pieces[0]).within(0.3 * pieces[0].dense_bytes)) > 1


def test_a_lower_power_moves_bytes_to_the_pieces_with_little_energy() -> None:
    loud = ToyPiece("loud", (30, 30), 90 * 0.8 ** torch.arange(30.0), cost="pivoted")
    quiet = ToyPiece("quiet", (30, 30), 9 * 0.8 ** torch.arange(30.0), cost="pivoted")
    sizes = [hulls([loud, quiet], 0.5, PLAIN, no_trial, power=power) for power in (1.0, 0.5, 0.0)]
    assert sizes[0]["quiet"] < sizes[1]["quiet"] < sizes[2]["quiet"]
    assert abs(sizes[2]["loud"] - sizes[2]["quiet"]) <= 1


def shared(*names: str) -> dict[str, Role]:
    return {name: Role(name, 0, heads=8, kv_heads=2, head_dim=4) for name in names}


def grouped() -> list[Piece]:
    """The matrices of attention with 8 heads that share 2 of k and v; k and v have little energy."""
    large = 5 * 0.95 ** torch.arange(32.0)
    small = 0.1 * 0.95 ** torch.arange(8.0)
    return [
        ToyPiece("q", (32, 32), large, cost="pivoted"),
        ToyPiece("k", (8, 32), small, cost="pivoted"),
        ToyPiece("v", (8, 32), small, cost="pivoted"),
    ]


@pytest.mark.parametrize("rule", [energy, hulls])
def test_keys_and_values_that_heads_share_keep_a_larger_share(rule: Allocation) -> None:
    pieces = grouped()
    plain = rule(pieces, 0.5, PLAIN, no_trial)
    told = replace(PLAIN, roles=shared("q", "k", "v"))
    sizes = rule(pieces, 0.5, told, no_trial)
    for piece in pieces[1:]:
        floor = menu_of(piece).within(0.75 * piece.dense_bytes)
        assert sizes[piece.label] >= menu_of(piece).size(floor) >= plain[piece.label]
    assert hulls(pieces, 0.5, replace(told, options={"protect": 1.0}), no_trial)["k"] == 8
    assert hulls(pieces, 0.5, replace(told, options={"protect": 0.0}), no_trial) == hulls(pieces, 0.5, PLAIN, no_trial)


def test_heads_that_share_nothing_are_not_protected() -> None:
    roles = {name: Role(name, 0, heads=8, kv_heads=8, head_dim=4) for name in "qkv"}
    assert hulls(grouped(), 0.5, replace(PLAIN, roles=roles), no_trial) == hulls(grouped(), 0.5, PLAIN, no_trial)


def test_floors_that_do_not_fit_are_lowered_alike() -> None:
    told = replace(PLAIN, roles=shared("k", "v"), options={"protect": 1.0})
    pieces = grouped()[1:]
    sizes = hulls(pieces, 0.5, told, no_trial)
    assert abs(sizes["k"] - sizes["v"]) <= 1 < sizes["v"]
    assert total_bytes(pieces, sizes) <= 0.5 * dense_bytes(pieces)


def test_a_share_of_protection_outside_its_range_is_named() -> None:
    with pytest.raises(ValueError, match=r"protect: 1\.5"):
        hulls(two(), 0.5, Settings(options={"protect": 1.5}), no_trial)


def test_a_budget_below_the_least_sizes_says_what_they_take() -> None:
    with pytest.raises(ValueError, match=r"keep: 0.1, but the least that these matrices can take is 0.1667"):
        menus_of(two(), 0.1, Settings())
