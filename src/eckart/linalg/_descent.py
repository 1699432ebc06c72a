"""Spend a budget on a menu of (cost, error) points per row: always the move that removes most error per unit of cost.

A move takes one row from its point to any dearer one that still fits. Until a move fails to fit, this walks down the
lower convex hulls of all rows together, and the choices along that walk are the minimisers of error + μ·cost: they are
found by bisecting the price μ, for all rows at once (`descend`). What is left is spent move by move (`spend_rest`).
More budget never ends in more error: the first move that only the larger budget affords removes more than all that
the smaller one can still buy, for each of those moves removes less per unit.
"""

import heapq
import math

import torch
from torch import Tensor

_STEPS = 40  # bisections over 60 decades of price leave prices within 1e-10 unresolved
_MANY = 10_000  # moves; above this another bisection is cheaper than going move by move


def spend(
    cost: Tensor,  # (L, P) float64, inf where a point is not offered
    error: Tensor,  # (L, P) float64, not increasing in cost along a row
    start: Tensor,  # (L,) int64, the cheapest point of each row
    budget: float,
) -> Tensor:  # (L,) int64
    """The point of each row after spending `budget` greedily."""
    least = _at(cost, start)[:, None]
    step = float(torch.where(cost > least, cost - least, torch.inf).min())
    choice = start
    while True:
        moved = _descend(cost, error, choice, budget)
        spare = budget - float(_at(cost, moved).sum())
        if torch.equal(moved, choice) or spare < _MANY * step:
            return _spend_rest(cost, error, moved, spare)
        choice = moved


def _at(table: Tensor, choice: Tensor) -> Tensor:
    return table.gather(1, choice[:, None]).squeeze(1)


def _descend(cost: Tensor, error: Tensor, choice: Tensor, budget: float) -> Tensor:
    """Walk from `choice` along the common hull of all points that fit alone, and stop before the first misfit."""
    here, left = _at(cost, choice)[:, None], _at(error, choice)[:, None]
    spare = budget - float(here.sum())
    price = torch.where((cost >= here) & (cost - here <= spare), cost, torch.inf)
    high = float(torch.where(price > here, (left - error) / (price - here), 0.0).max())
    if high <= 0:
        return choice
    best, work = choice, torch.empty_like(error)

    def cheapest(mu: float) -> Tensor:
        return torch.add(error, price, alpha=mu, out=work).argmin(1)

    upper, lower = math.log(high) + 1e-9, math.log(high) - math.log(10) * 60
    over = cheapest(math.exp(lower))
    if float(_at(cost, over).sum()) <= budget:
        return over
    for _ in range(_STEPS):
        if int((over != best).sum()) <= 1:
            break
        middle = (upper + lower) / 2
        found = cheapest(math.exp(middle))
        if float(_at(cost, found).sum()) <= budget:
            upper, best = middle, found
        else:
            lower, over = middle, found
    return best


def _spend_rest(cost: Tensor, error: Tensor, choice: Tensor, spare: float) -> Tensor:
    """Move by move from a heap of each row's best move; a move that no longer fits is looked up again."""
    choice = choice.clone()
    heap: list[tuple[float, int, int]] = []

    def push(row: int) -> None:
        at = int(choice[row])
        extra = cost[row] - cost[row, at]
        fits = (extra > 0) & (extra <= spare)
        rate = torch.where(fits, (error[row, at] - error[row]) / extra, 0.0)
        best = float(rate.max())
        if best > 0:
            heapq.heappush(heap, (-best, row, int((rate == best).nonzero()[-1])))

    for row in range(len(choice)):
        push(row)
    while heap:
        _, row, target = heapq.heappop(heap)
        extra = float(cost[row, target] - cost[row, choice[row]])
        if extra <= spare:
            choice[row] = target
            spare -= extra
        push(row)
    return choice
