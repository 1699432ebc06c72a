"""Rank allocation: within the budget, near the exhaustive optimum, exact at the corners of the hulls."""

import itertools
import time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eckart.linalg.allocation import allocate, rank_cost
from eckart.linalg.approximation import approximation_error, weighted_approximation, weighted_singular_values

Problem = dict[str, Any]


@st.composite
def problems(draw: st.DrawFn, matrices: int = 3, largest: int = 6, plain: bool = False) -> Problem:
    """Arguments of `allocate` without a budget: up to three small matrices, random limits."""
    names = [f"layer{i}" for i in range(draw(st.integers(1, matrices)))]
    sizes = st.integers(1, largest)
    shapes = {name: (draw(sizes), draw(sizes)) for name in names}
    values = st.floats(0, 10, width=32)
    spectra = {
        name: torch.tensor(sorted((draw(values) for _ in range(min(shapes[name]))), reverse=True), dtype=torch.float64)
        for name in names
    }
    problem = {"spectra": spectra, "shapes": shapes, "cost": draw(st.sampled_from(["factors", "pivoted"]))}
    problem["weights"] = {name: draw(st.floats(0, 4, width=16)) for name in names}
    problem["dense"] = draw(st.booleans())
    if not plain:
        problem["floor"] = {name: draw(st.integers(0, 2)) for name in names}
        problem["multiple"] = draw(st.integers(1, 2)) if problem["dense"] else 1
        problem["ceiling"] = {name: draw(st.integers(2, 7)) for name in names if draw(st.booleans())}
    return problem


def price(problem: Problem, name: str, rank: int) -> int:
    return rank_cost(rank, problem["shapes"][name], cost=problem["cost"], dense=problem["dense"])


def error(problem: Problem, name: str, rank: int) -> float:
    return problem["weights"][name] * float(problem["spectra"][name][rank:].square().sum())


def points(problem: Problem, name: str) -> list[tuple[int, float, int]]:
    """(cost, error, rank) of every rank on offer, by a path of its own."""
    k = min(problem["shapes"][name])
    floor = min(problem.get("floor", {}).get(name, 0), k)
    ceiling = min(problem.get("ceiling", {}).get(name, k), k)
    multiple, dense = problem.get("multiple", 1), problem["dense"]
    ranks = [r for r in range(floor, ceiling + 1) if r % multiple == 0 or (dense and r == k)]
    if dense and ceiling == k:
        ranks = [r for r in ranks if r == k or price(problem, name, r) < price(problem, name, k)]
    return [(price(problem, name, r), error(problem, name, r), r) for r in ranks]


def solvable(problem: Problem) -> bool:
    return all(points(problem, name) for name in problem["spectra"])


def least_cost(problem: Problem) -> int:
    return sum(points(problem, name)[0][0] for name in problem["spectra"])


def totals(problem: Problem, ranks: dict[str, int]) -> tuple[int, float]:
    names = problem["spectra"]
    return sum(price(problem, n, ranks[n]) for n in names), sum(error(problem, n, ranks[n]) for n in names)


def optimum(problem: Problem, budget: float) -> float:
    """The least error within the budget, over every combination of ranks."""
    table = [points(problem, name) for name in problem["spectra"]]
    return min(sum(p[1] for p in choice) for choice in itertools.product(*table) if sum(p[0] for p in choice) <= budget)


def segments(problem: Problem) -> list[tuple[float, int, float]]:
    """(error removed per parameter, parameters, error removed) along the lower hulls, best first."""
    found = []
    for name in problem["spectra"]:
        hull: list[tuple[int, float, int]] = []
        for p in points(problem, name):
            while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (p[0] - hull[-1][0]) >= (p[1] - hull[-1][1]) * (
                hull[-1][0] - hull[-2][0]
            ):
                hull.pop()
            hull.append(p)
        for a, b in itertools.pairwise(hull):
            found.append(((a[1] - b[1]) / (b[0] - a[0]), b[0] - a[0], a[1] - b[1]))
    return sorted(found, reverse=True)


@settings(deadline=None, max_examples=150)
@given(problem=problems(), share=st.floats(0, 1.1))
def test_budget_limits_and_multiples_hold_and_the_optimum_is_one_hull_step_away(problem: Problem, share: float) -> None:
    if not solvable(problem):
        with pytest.raises(ValueError, match="no rank"):
            allocate(budget=1e9, **problem)
        return
    low = least_cost(problem)
    high = sum(points(problem, name)[-1][0] for name in problem["spectra"])
    budget = low + share * (high - low)
    ranks = allocate(budget=budget, **problem)
    assert list(ranks) == list(problem["spectra"])
    for name, rank in ranks.items():
        assert rank in [p[2] for p in points(problem, name)]
    cost, left = totals(problem, ranks)
    assert cost <= budget
    best = optimum(problem, budget)
    step = max((s[2] for s in segments(problem)), default=0.0)
    assert left <= best + step + 1e-9
    if share >= 1:
        assert left == pytest.approx(best, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(problem=problems())
def test_at_every_corner_of_the_hulls_the_choice_is_optimal(problem: Problem) -> None:
    if not solvable(problem):
        return
    budget = least_cost(problem)
    assert totals(problem, allocate(budget=budget, **problem))[1] <= optimum(problem, budget) + 1e-9
    for _, cost, _ in segments(problem):
        budget += cost
        left = totals(problem, allocate(budget=budget, **problem))[1]
        assert left == pytest.approx(optimum(problem, budget), rel=1e-9, abs=1e-9)


@settings(deadline=None, max_examples=25)
@given(problem=problems(matrices=4, largest=9))
def test_more_budget_never_leaves_more_error(problem: Problem) -> None:
    if not solvable(problem):
        return
    low = least_cost(problem)
    high = sum(points(problem, name)[-1][0] for name in problem["spectra"])
    lefts = [totals(problem, allocate(budget=low + (high - low) * i / 30, **problem))[1] for i in range(32)]
    for less, more in itertools.pairwise(lefts):
        assert more <= less + 1e-9


@settings(deadline=None, max_examples=40)
@given(problem=problems(matrices=4, largest=9, plain=True), share=st.floats(0, 1))
def test_no_rank_costs_as_much_as_the_dense_matrix(problem: Problem, share: float) -> None:
    problem["dense"] = True
    budget = share * sum(m * n for m, n in problem["shapes"].values())
    for name, rank in allocate(budget=budget, **problem).items():
        m, n = problem["shapes"][name]
        factors = rank * (m + n) if problem["cost"] == "factors" else rank * (m + n - rank)
        assert rank == min(m, n) or factors < m * n


def test_a_floor_above_break_even_gives_the_dense_matrix() -> None:
    ranks = allocate({"w": torch.ones(8)}, {"w": (8, 8)}, 64, floor=5)
    assert ranks == {"w": 8}
    assert allocate({"w": torch.ones(8)}, {"w": (8, 8)}, 80, floor=5, dense=False) == {"w": 5}


def test_a_ceiling_below_full_rank_excludes_the_dense_matrix() -> None:
    assert allocate({"w": torch.ones(8)}, {"w": (8, 8)}, 1e6, ceiling=6) == {"w": 6}
    assert allocate({"w": torch.ones(8)}, {"w": (8, 8)}, 1e6, ceiling={"w": 6}, multiple=4) == {"w": 4}


def test_without_the_dense_point_full_rank_costs_both_factors() -> None:
    spectra, shapes = {"w": torch.ones(8)}, {"w": (8, 8)}
    assert allocate(spectra, shapes, 127, dense=False) == {"w": 7}
    assert allocate(spectra, shapes, 128, dense=False) == {"w": 8}
    assert rank_cost(8, (8, 8), dense=False) == 128


def test_pivoted_storage_affords_higher_ranks() -> None:
    spectra = {"w": torch.arange(512, 0, -1).double()}
    shapes = {"w": (512, 512)}
    budget = 0.8 * 512**2
    assert allocate(spectra, shapes, budget) == {"w": 204}
    assert allocate(spectra, shapes, budget, cost="pivoted") == {"w": 283}


def test_importance_moves_rank_to_the_matrix_that_matters() -> None:
    spectra = {"a": torch.ones(8), "b": torch.ones(8)}
    shapes = {"a": (8, 8), "b": (8, 8)}
    assert allocate(spectra, shapes, 64, weights={"a": 1.0, "b": 2.0}) == {"a": 0, "b": 8}
    assert allocate(spectra, shapes, 64, weights={"a": 1.0, "b": 0.0}) == {"a": 8, "b": 0}


def test_dead_matrices_and_zero_tails_get_nothing() -> None:
    spectra = {"dead": torch.zeros(6), "short": torch.tensor([3.0, 2.0]), "rank1": torch.tensor([5.0, 0, 0, 0, 0, 0])}
    shapes = {"dead": (6, 6), "short": (6, 6), "rank1": (6, 6)}
    assert allocate(spectra, shapes, 1e6) == {"dead": 0, "short": 2, "rank1": 1}


def test_no_matrices_need_no_budget() -> None:
    assert allocate({}, {}, 0) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_spectra_may_come_in_any_float_dtype(dtype: torch.dtype) -> None:
    ranks = allocate({"w": torch.tensor([4.0, 2.0, 1.0]).to(dtype)}, {"w": (3, 9)}, 24)
    assert ranks == {"w": 2}


@pytest.mark.parametrize("cost", ["factors", "pivoted"])
@pytest.mark.parametrize("kind", ["power_law", "identical", "flat"])
def test_a_thousand_matrices_are_allocated_fast_and_fill_the_budget(cost: str, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    order = torch.arange(1, 1025, dtype=torch.float64)
    exponents = 0.3 + torch.rand(1000, generator=generator, dtype=torch.float64)
    if kind != "power_law":
        exponents[:] = 0.5 if kind == "identical" else 0.0
    spectra = {str(i): order ** -exponents[i] for i in range(1000)}
    shapes = {str(i): (1024, 1024) if i % 3 else (2752, 1024) for i in range(1000)}
    budget = 0.6 * sum(m * n for m, n in shapes.values())
    start = time.perf_counter()
    ranks = allocate(spectra, shapes, budget, cost=cost)
    assert time.perf_counter() - start < 20  # 1 s on an idle machine; a step-by-step greedy takes minutes
    spent = sum(rank_cost(ranks[name], shapes[name], cost=cost) for name in ranks)
    assert budget - 1024 * 3776 < spent <= budget
    if kind == "power_law":
        assert budget - 2048 < spent


def test_a_blocked_first_choice_leaves_the_budget_to_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    spectra = {str(i): torch.rand(64, generator=generator).sort(descending=True).values for i in range(200)}
    spectra["giant"] = torch.full((64,), 1e3)
    shapes = dict.fromkeys(spectra, (64, 64)) | {"giant": (64, 40_000)}
    budget = 64 * 40_000 - 1  # all but the giant's dense point
    ranks = allocate(spectra, shapes, budget)
    assert ranks["giant"] == budget // 40_064
    spent = sum(rank_cost(ranks[name], shapes[name]) for name in ranks)
    assert budget - 128 < spent <= budget


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 20, "floor": 2}, "smallest ranks allowed cost 24 parameters"),
        ({"budget": float("nan")}, "budget is nan"),
        ({"shapes": {"v": (4, 8)}}, "shapes and spectra must name the same"),
        ({"weights": {}}, "weights has no entry for"),
        ({"floor": {"v": 1}}, r"floor has unknown \['v'\]"),
        ({"floor": 3, "ceiling": 2}, "w has no rank"),
        ({"multiple": 0}, "multiple must be at least 1"),
        ({"floor": -1}, "floor must be at least 0"),
        ({"cost": "bytes"}, "cost must be one of factors, pivoted"),
        ({"weights": {"w": -1.0}}, "weight of w"),
        ({"spectra": {"w": torch.tensor([1.0, 2.0])}}, "must be finite, non-negative and descending"),
        ({"spectra": {"w": torch.tensor([1.0, float("nan")])}}, "must be finite, non-negative and descending"),
        ({"spectra": {"w": torch.ones(5)}}, "at most 4 values"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    defaults: dict[str, Any] = {"spectra": {"w": torch.ones(4)}, "shapes": {"w": (4, 8)}, "budget": 32}
    with pytest.raises(ValueError, match=message):
        allocate(**(defaults | arguments))


def test_a_rank_above_the_dimensions_has_no_cost() -> None:
    with pytest.raises(ValueError, match="at most 4"):
        rank_cost(5, (4, 8))


def test_the_weighted_error_that_is_left_is_what_the_factors_measure() -> None:
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {
        name: torch.randn(m, n, dtype=torch.float64, generator=generator) for name, m, n in [("a", 9, 12), ("b", 12, 7)]
    }
    metrics = {}
    for name, W in weights.items():
        X = torch.randn(W.shape[1], 5, dtype=torch.float64, generator=generator)
        metrics[name] = X @ X.T
    spectra = {name: weighted_singular_values(W, input_covariance=metrics[name]) for name, W in weights.items()}
    ranks = allocate(spectra, {name: tuple(W.shape) for name, W in weights.items()}, 120)
    for name, W in weights.items():
        assert 0 < ranks[name] < min(W.shape)
        B, A = weighted_approximation(W, ranks[name], input_covariance=metrics[name])
        measured = approximation_error(W, B, A, input_covariance=metrics[name])
        torch.testing.assert_close(measured, spectra[name][ranks[name] :].norm(), rtol=1e-6, atol=1e-6)
