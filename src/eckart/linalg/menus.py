"""Choose one point (cost, error) from each of several menus, under a budget: `allocate` for any cost and any error.

    minimise Σ_l error_l(p_l)   subject to   Σ_l cost_l(p_l) ≤ budget

As in `allocate`, the choice goes along the lower convex hulls of all menus together: at a budget where it ends on a
corner it is optimal, between corners it is above the optimum by less than what the next step removes, and the error
never grows with the budget. Points that cost more and remove nothing are passed over, so a measured, noisy error does
no harm.

Cost: O(total number of points) per bisection of the price, about 30 of them.

Paper: none; greedy on hulls is exact for separable convex problems.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from eckart.linalg._descent import spend


def choose_points(
    costs: Mapping[str, Tensor],  # name → (p,)
    errors: Mapping[str, Tensor],  # name → (p,)
    budget: float,
) -> dict[str, int]:
    """The point of each menu that leaves the least error in all under a budget.

    Args:
        costs: Cost of each point of each menu, finite and at least 0, in any order.
        errors: Error of each of these points, finite, in the same order.
        budget: What all chosen points together may cost.

    Returns:
        name → index of the chosen point, in the order of `costs`.

    Raises:
        ValueError: The cheapest points cost more than the budget (it says how much), the names or lengths of the menus
            do not agree, a menu is empty, or a number is not finite.

    Example:
        >>> import torch
        >>> costs = {"a": torch.tensor([0.0, 4.0, 6.0]), "b": torch.tensor([1.0, 3.0])}
        >>> errors = {"a": torch.tensor([9.0, 2.0, 0.0]), "b": torch.tensor([2.0, 1.0])}
        >>> choose_points(costs, errors, 5), choose_points(costs, errors, 7)
        ({'a': 1, 'b': 0}, {'a': 2, 'b': 0})
    """
    if costs.keys() != errors.keys():
        raise ValueError(
            f"costs and errors must name the same menus: {sorted(costs.keys() ^ errors.keys())[:5]} differ"
        )
    if not costs:
        return {}
    for name, prices in costs.items():
        _require_menu(name, prices, errors[name])
    width = max(len(prices) for prices in costs.values())
    cost = torch.full((len(costs), width), torch.inf, dtype=torch.float64)
    error = torch.zeros(len(costs), width, dtype=torch.float64)
    for row, (name, prices) in enumerate(costs.items()):
        cost[row, : len(prices)] = prices
        error[row, : len(prices)] = errors[name]
    least = cost.amin(1, keepdim=True)
    start = torch.where(cost == least, error, torch.inf).argmin(1)
    if not float(least.sum()) <= budget:
        raise ValueError(f"budget is {budget}, but the cheapest points cost {float(least.sum()):.6g} in all; raise it")
    return dict(zip(costs, spend(cost, error, start, float(budget)).tolist(), strict=True))


def _require_menu(name: str, prices: Tensor, errors: Tensor) -> None:
    if prices.ndim != 1 or prices.shape != errors.shape or len(prices) == 0:
        shapes = f"{tuple(prices.shape)} and {tuple(errors.shape)}"
        raise ValueError(f"the costs and errors of {name} must be 1-D, of one length, at least 1; got shapes {shapes}")
    if not bool(torch.isfinite(prices).all() and torch.isfinite(errors).all()) or bool((prices < 0).any()):
        raise ValueError(f"the costs (at least 0) and errors of {name} must be finite numbers")
