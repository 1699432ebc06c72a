"""Choosing points of menus: within the budget, one step from the exhaustive optimum, and what `allocate` gives."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from eckart.linalg import allocate, choose_points, rank_cost

Menus = tuple[dict[str, Tensor], dict[str, Tensor]]


@st.composite
def menus(draw: st.DrawFn) -> Menus:
    """Up to four menus of any costs and errors, in no order."""
    costs, errors = {}, {}
    for i in range(draw(st.integers(1, 4))):
        length = draw(st.integers(1, 6))
        costs[f"m{i}"] = torch.tensor([draw(st.integers(0, 20)) for _ in range(length)], dtype=torch.float64)
        errors[f"m{i}"] = torch.tensor([draw(st.integers(0, 50)) for _ in range(length)], dtype=torch.float64)
    return costs, errors


def totals(costs: dict[str, Tensor], errors: dict[str, Tensor], chosen: dict[str, int]) -> tuple[float, float]:
    return (
        sum(float(costs[name][point]) for name, point in chosen.items()),
        sum(float(errors[name][point]) for name, point in chosen.items()),
    )


def optimum(costs: dict[str, Tensor], errors: dict[str, Tensor], budget: float) -> float:
    choices = itertools.product(*(range(len(menu)) for menu in costs.values()))
    named = (dict(zip(costs, choice, strict=True)) for choice in choices)
    return min(error for cost, error in (totals(costs, errors, each) for each in named) if cost <= budget)


@given(problem=menus(), share=st.floats(0, 1.2))
def test_the_choice_fits_and_is_one_step_from_the_exhaustive_optimum(problem: Menus, share: float) -> None:
    costs, errors = problem
    low = sum(float(menu.min()) for menu in costs.values())
    high = sum(float(menu.max()) for menu in costs.values())
    budget = low + share * (high - low)
    chosen = choose_points(costs, errors, budget)
    assert list(chosen) == list(costs)
    cost, error = totals(costs, errors, chosen)
    step = max(float(menu.max() - menu.min()) for menu in errors.values())
    assert cost <= budget
    assert error <= optimum(costs, errors, budget) + step
    if share >= 1:
        assert error == sum(float(menu.min()) for menu in errors.values())


@pytest.mark.parametrize("cost", ["factors", "pivoted"])
def test_menus_of_ranks_give_what_allocate_gives(cost: str) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (6, 9), "b": (8, 8), "c": (12, 5)}
    spectra = {n: torch.rand(min(s), generator=generator).sort(descending=True).values for n, s in shapes.items()}
    costs, errors = {}, {}
    for name, shape in shapes.items():
        k, dense = min(shape), shape[0] * shape[1]
        ranks = [r for r in range(k) if rank_cost(r, shape, cost=cost) < dense] + [k]
        costs[name] = torch.tensor([float(rank_cost(r, shape, cost=cost)) for r in ranks])
        tails = torch.cat((spectra[name].double().square().flip(0).cumsum(0).flip(0), torch.zeros(1)))
        errors[name] = torch.stack([tails[r] if r < k else tails[-1] for r in ranks])
    for budget in range(0, 180, 7):
        ranks = allocate(spectra, shapes, budget, cost=cost)
        chosen = choose_points(costs, errors, budget)
        spent = sum(float(costs[name][point]) for name, point in chosen.items())
        assert spent == sum(rank_cost(rank, shapes[name], cost=cost) for name, rank in ranks.items())


def test_a_dear_point_that_removes_nothing_is_passed_over() -> None:
    costs = {"noisy": torch.tensor([1.0, 2.0, 3.0]), "other": torch.tensor([0.0, 2.0])}
    errors = {"noisy": torch.tensor([1.0, 5.0, 0.9]), "other": torch.tensor([4.0, 0.0])}
    assert choose_points(costs, errors, 3) == {"noisy": 0, "other": 1}
    assert choose_points(costs, errors, 5) == {"noisy": 2, "other": 1}


def test_of_two_points_of_one_cost_the_better_is_taken() -> None:
    assert choose_points({"a": torch.tensor([1.0, 1.0])}, {"a": torch.tensor([2.0, 1.0])}, 1) == {"a": 1}


def test_no_menus_need_no_budget() -> None:
    assert choose_points({}, {}, 0) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 0.5}, "the cheapest points cost 1 in all"),
        ({"budget": float("nan")}, "budget is nan"),
        ({"errors": {"b": torch.ones(2)}}, "must name the same menus"),
        ({"errors": {"a": torch.ones(3)}}, "of one length"),
        ({"costs": {"a": torch.ones(0)}, "errors": {"a": torch.ones(0)}}, "at least 1"),
        ({"errors": {"a": torch.tensor([1.0, float("nan")])}}, "must be finite"),
        ({"costs": {"a": torch.tensor([1.0, -1.0])}}, "at least 0"),
    ],
)
def test_a_wrong_menu_is_named(arguments: dict[str, Any], message: str) -> None:
    defaults: dict[str, Any] = {"costs": {"a": torch.tensor([1.0, 2.0])}, "errors": {"a": torch.ones(2)}, "budget": 2}
    with pytest.raises(ValueError, match=message):
        choose_points(**(defaults | arguments))
