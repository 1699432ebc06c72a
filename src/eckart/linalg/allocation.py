"""Share a budget of parameters between matrices: which rank for each, or dense.

    minimise Σ_l w_l Σ_{i>r_l} σ_{l,i}²   subject to   Σ_l cost_l(r_l) ≤ budget

    cost "factors":  r(m+n), B and A; no cheaper than the dense matrix from r = mn/(m+n) on
    cost "pivoted":  r(m+n−r), the gauge-fixed form (PIFA, arXiv 2501.19090); mn at full rank

Every rank of every matrix is a point (cost, error), and so is the dense matrix, (mn, 0). The best choice per parameter
goes along the lower convex hulls of these points. At a budget where it ends on a corner of the hulls it is optimal;
between corners its error is above the optimum by less than what the next step along the hulls removes. What remains
of the budget is then spent greedily as well. The error never grows with the budget.

Cost: O(total number of singular values) per bisection, about 30 of them; 1000 matrices of rank 4096 in seconds.

Paper: none; greedy on hulls is exact for separable convex problems. Allocations without the dense point (SVD-LLM v2)
pay more than mn at high ranks.
"""

import math
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from eckart.linalg._check import require_count
from eckart.linalg._descent import spend

_COSTS = ("factors", "pivoted")
Count = TypeVar("Count", int, Tensor)


def allocate(
    spectra: Mapping[str, Tensor],  # name → σ (k,) descending
    shapes: Mapping[str, tuple[int, int]],  # name → (m, n)
    budget: float,
    *,
    cost: str = "factors",
    weights: Mapping[str, float] | None = None,
    floor: Mapping[str, int] | int = 0,
    ceiling: Mapping[str, int] | int | None = None,
    multiple: int = 1,
    dense: bool = True,
) -> dict[str, int]:
    """The ranks that leave the least error Σ w·σ² under a budget of parameters.

    Args:
        spectra: Singular values per matrix, descending, as of W or, better, of G^{1/2} W C^{1/2}
            (`weighted_singular_values`). Values beyond the end of a shorter spectrum count as zero.
        shapes: (m, n) per matrix.
        budget: Parameters to spend on all matrices together, an absolute number.
        cost: "factors", r(m+n), or "pivoted", r(m+n−r).
        weights: Importance per matrix, at least 0, multiplying σ²; None for ones.
        floor: Least rank, one for all or per matrix (0 where absent); above min(m, n) it means min(m, n).
        ceiling: Largest rank, likewise (no limit where absent). Below min(m, n) it excludes the dense matrix.
        multiple: Ranks are multiples of this, rounded up from the floor; full rank is always one if `dense`.
        dense: Whether rank min(m, n) means the matrix as it is: mn parameters, no error. Then no other rank may
            cost as much.

    Returns:
        name → rank from 0 to min(m, n), in the order of `spectra`.

    Raises:
        ValueError: A budget below that of the floors (it says the least one), names that do not agree, a spectrum
            that is not descending, non-negative and finite, no rank between a floor and a ceiling.

    Example:
        >>> import torch
        >>> spectra = {"flat": torch.ones(8), "steep": torch.tensor([9.0, 1.1, 0.1])}
        >>> shapes = {"flat": (8, 8), "steep": (8, 8)}
        >>> allocate(spectra, shapes, 96)  # 64 for all of one matrix, 2·(8+8) for the other
        {'flat': 8, 'steep': 2}
        >>> allocate(spectra, shapes, 96, dense=False)
        {'flat': 4, 'steep': 2}
    """
    names = list(spectra)
    _require_names("shapes", shapes, names, complete=True)
    weights = dict.fromkeys(names, 1.0) if weights is None else weights
    _require_names("weights", weights, names, complete=True)
    require_count("multiple", multiple, 1)
    if not names:
        return {}
    floors, ceilings = _limits("floor", floor, names, shapes, 0), _limits("ceiling", ceiling, names, shapes, None)
    width = max(min(shape) for shape in shapes.values()) + 1
    price = torch.full((len(names), width), torch.inf, dtype=torch.float64)
    error = torch.zeros(len(names), width, dtype=torch.float64)
    for row, name in enumerate(names):
        k = min(shapes[name])
        prices = _prices(shapes[name], cost, dense)
        offered = _offered(name, prices, floors[name], ceilings[name], multiple, dense)
        price[row, : k + 1] = torch.where(offered, prices, torch.inf)
        error[row, : k + 1] = _errors(name, spectra[name], k, weights[name])
    least, start = price.min(1)
    if not float(least.sum()) <= budget:
        raise ValueError(
            f"budget is {budget}, but the smallest ranks allowed cost {int(least.sum())} parameters; "
            f"raise budget to that or lower floor"
        )
    return dict(zip(names, spend(price, error, start, float(budget)).tolist(), strict=True))


def rank_cost(rank: int, shape: tuple[int, int], *, cost: str = "factors", dense: bool = True) -> int:
    """The parameters that one matrix takes at a rank, as `allocate` counts them.

    Args:
        rank: From 0 to min(m, n).
        shape: (m, n).
        cost: "factors" or "pivoted".
        dense: Whether rank min(m, n) means the dense matrix.

    Returns:
        The number of parameters.

    Raises:
        ValueError: Another cost, or a rank outside its range.

    Example:
        >>> rank_cost(10, (100, 50)), rank_cost(10, (100, 50), cost="pivoted"), rank_cost(50, (100, 50))
        (1500, 1400, 5000)
    """
    require_count("rank", rank)
    if rank > min(shape):
        raise ValueError(f"rank must be at most {min(shape)} for shape {tuple(shape)}, got {rank}")
    _require_cost(cost)
    return math.prod(shape) if dense and rank == min(shape) else _numbers(rank, shape, cost)


def _prices(shape: tuple[int, int], cost: str, dense: bool) -> Tensor:
    """The parameters of ranks 0 … min(m, n)."""
    _require_cost(cost)
    prices = _numbers(torch.arange(min(shape) + 1, dtype=torch.float64), shape, cost)
    if dense:
        prices[-1] = math.prod(shape)
    return prices


def _numbers(r: Count, shape: tuple[int, int], cost: str) -> Count:
    m, n = shape
    return r * (m + n) if cost == "factors" else r * (m + n - r)


def _require_cost(cost: str) -> None:
    if cost not in _COSTS:
        raise ValueError(f"cost must be one of {', '.join(_COSTS)}, got {cost!r}")


def _offered(name: str, prices: Tensor, floor: int, ceiling: int, multiple: int, dense: bool) -> Tensor:
    """Which of the ranks 0 … min(m, n) may be chosen; with the dense matrix on offer, none that costs as much."""
    r = torch.arange(len(prices))
    full = r == r[-1]
    offered = (r >= floor) & (r <= ceiling) & ((r % multiple == 0) | (full & dense))
    if dense and ceiling == len(prices) - 1:
        offered &= (prices < prices[-1]) | full
    if not bool(offered.any()):
        raise ValueError(f"{name} has no rank that is a multiple of {multiple} from floor {floor} to ceiling {ceiling}")
    return offered


def _errors(name: str, S: Tensor, k: int, weight: float) -> Tensor:
    """w Σ_{i>r} σ_i² for r = 0 … k."""
    S = S.detach().to("cpu", torch.float64)
    if S.ndim != 1 or len(S) > k:
        raise ValueError(f"the spectrum of {name} must be 1-D of at most {k} values, got shape {tuple(S.shape)}")
    if not bool(torch.isfinite(S).all()) or bool((S < 0).any()) or bool((S.diff() > 1e-6 * S[:1]).any()):
        raise ValueError(f"the spectrum of {name} must be finite, non-negative and descending; sort it or repair it")
    if not 0 <= weight < float("inf"):
        raise ValueError(f"the weight of {name} must be a finite number of at least 0, got {weight}")
    errors = torch.zeros(k + 1, dtype=torch.float64)
    errors[: len(S)] = weight * S.square().flip(0).cumsum(0).flip(0)
    return errors


def _limits(
    argument: str,
    value: Mapping[str, int] | int | None,
    names: list[str],
    shapes: Mapping[str, tuple[int, int]],
    absent: int | None,
) -> dict[str, int]:
    """One limit per matrix, at most min(m, n)."""
    if isinstance(value, Mapping):
        _require_names(argument, value, names, complete=False)
    limits = {}
    for name in names:
        limit = value.get(name, absent) if isinstance(value, Mapping) else value
        if limit is not None:
            require_count(argument, limit)
        limits[name] = min(shapes[name]) if limit is None else min(limit, *shapes[name])
    return limits


def _require_names(argument: str, mapping: Mapping[str, object], names: list[str], complete: bool) -> None:
    known = set(names)
    unknown = [name for name in mapping if name not in known]
    missing = [name for name in names if name not in mapping] if complete else []
    if unknown or missing:
        what = f"unknown {unknown[:5]}" if unknown else f"no entry for {missing[:5]}"
        raise ValueError(f"{argument} and spectra must name the same matrices: {argument} has {what}")
