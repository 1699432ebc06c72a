"""Which size for which piece, under a budget of bytes that is never exceeded.

| allocation | rule | source |
|---|---|---|
| uniform | every piece keeps the same share of its bytes: rank ⌊keep·mn/(m+n)⌋ | SVD-LLM, arXiv 2403.07378 |
| energy | every piece keeps the same share of its energy Σσ² | arXiv 1907.08620 and others |
| hulls | least Σ w σ² that the budget buys, on convex hulls with the dense point (`linalg.choose_points`) | ours |

The energies of different pieces are comparable where the metric makes them so: with output gradients σ² is the change
of the loss, to second order. `hulls` of a metric without them favours what has large outputs.
Cost: sorting of spectra that are there already; no run of the model.
Paper: none.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from eckart.compression.allocations.menus import Menus, floored, largest_part, menus_of, spent, standing_bytes
from eckart.compression.pieces.piece import Piece
from eckart.compression.settings import Settings
from eckart.linalg import choose_points

Sizes = dict[str, int]  # label of a piece → its size
Trial = Callable[[Mapping[str, int]], float]  # held-out loss when the pieces have these sizes
Allocation = Callable[[Sequence[Piece], float, Settings, Trial], Sizes]


def uniform(pieces: Sequence[Piece], keep: float, settings: Settings, trial: Trial) -> Sizes:
    """The same share for every piece; what rounding down to ranks leaves of the budget is not spent.

    Floors do not count. Where the least size of a small piece takes more than its share, the others keep less.

    Args:
        pieces: The pieces, which have learned.
        keep: Share of their dense bytes, above 0 and at most 1.
        settings: Its `multiple` counts.
        trial: Not needed.

    Raises:
        ValueError: The least sizes take more than the budget.
    """
    menus, budget = menus_of(pieces, keep, settings)
    dense = {piece.label: piece.dense_bytes for piece in pieces}

    def points(part: float) -> dict[str, int]:
        return {label: menu.within(part * keep * dense[label]) for label, menu in menus.items()}

    return _sizes(menus, points(largest_part(lambda part: spent(menus, points(part)) <= budget)))


def energy(pieces: Sequence[Piece], keep: float, settings: Settings, trial: Trial) -> Sizes:
    """The same share of the energy for every piece, as large as the budget allows; the rest goes to those with least.

    Args:
        pieces: The pieces, which have learned. One whose energy is all zero gets its floor.
        keep: Share of their dense bytes, above 0 and at most 1.
        settings: Its `floor`, `multiple` and roles count (see `menus.floored`).
        trial: Not needed.

    Raises:
        ValueError: The least sizes take more than the budget.
    """
    menus, budget = menus_of(pieces, keep, settings)
    menus = floored(menus, pieces, keep, settings)
    totals = {piece.label: _total(piece) for piece in pieces}
    kept = {label: 1 - menu.errors / (totals[label] or 1.0) for label, menu in menus.items()}

    def points(share: float) -> dict[str, int]:
        return {label: int((shares < share).sum()) for label, shares in kept.items()}

    found = points(largest_part(lambda share: spent(menus, points(share)) <= budget))
    return _sizes(menus, _filled(menus, found, kept, budget))


def hulls(
    pieces: Sequence[Piece],
    keep: float,
    settings: Settings,
    trial: Trial,
    *,
    power: float = 1.0,
    floor: float | None = None,
    protect: float | None = None,
) -> Sizes:
    """The sizes that leave the least error.

    Args:
        pieces: The pieces, which have learned. One whose energy is all zero gets its floor.
        keep: Share of their dense bytes, above 0 and at most 1.
        settings: Its `floor`, `multiple` and roles count.
        trial: Not needed.
        power: The energy of a piece counts to this power: below 1 its size matters less, at 0 only its shape.
        floor: Instead of the settings' one, 0 to 1.
        protect: Instead of the option of this name (see `menus.floored`).

    Raises:
        ValueError: The least sizes take more than the budget.
    """
    menus, budget = menus_of(pieces, keep, settings)
    menus = floored(menus, pieces, keep, settings, floor=floor, protect=protect)
    weights = {piece.label: (_total(piece) or 1.0) ** (power - 1) for piece in pieces}
    errors = {label: weights[label] * menu.errors for label, menu in menus.items()}
    return least(menus, errors, budget)


def least(menus: Menus, errors: Mapping[str, Tensor], budget: float) -> Sizes:
    """The sizes that leave the least of any error of the menus' points, (p,) for each, under a budget of bytes."""
    return _sizes(menus, choose_points({label: menu.prices for label, menu in menus.items()}, errors, budget))


def total_bytes(pieces: Sequence[Piece], sizes: Mapping[str, int]) -> int:
    """What all pieces take at their sizes; at full size, what stands there."""
    sized = [(piece, sizes[piece.label]) for piece in pieces]
    return sum(piece.bytes(size) if size < piece.full else standing_bytes(piece) for piece, size in sized)


def _total(piece: Piece) -> float:
    return float(piece.spectrum.double().square().sum())


def _sizes(menus: Menus, points: Mapping[str, int]) -> Sizes:
    return {label: menu.size(points[label]) for label, menu in menus.items()}


def _filled(menus: Menus, points: Mapping[str, int], kept: Mapping[str, Tensor], budget: float) -> dict[str, int]:
    """Points further up, one step at a time for the piece that keeps least of its energy, as far as the budget goes."""
    points = dict(points)
    spare = budget - spent(menus, points)
    waiting = [(float(kept[label][point]), label) for label, point in points.items()]
    heapq.heapify(waiting)
    while waiting:
        share, label = heapq.heappop(waiting)
        point = points[label]
        if share >= 1 or point + 1 == len(menus[label].sizes):
            continue
        extra = menus[label].price(point + 1) - menus[label].price(point)
        if extra <= spare:
            spare -= extra
            points[label] = point + 1
            heapq.heappush(waiting, (float(kept[label][point + 1]), label))
    return points
