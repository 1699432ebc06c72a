"""Measured sensitivity: how much the held-out loss rises when one piece alone is cut, and the best sizes by that.

    Δ_l(s) = loss(piece l at share s of its bytes, all else dense) − loss(dense),    s in .9, .7, .5, .3

Each piece's rises are made a function of its bytes: the lower convex hull of the measured points and (dense, 0),
straight between them and beyond the lowest; then the sizes with the least Σ Δ_l under the budget are taken, as in
`allocations.hulls`. What is measured needs no metric with gradients, but adds up the pieces as if they were alone.

Cost: 1 + pieces × shares runs over the held-out batches: 841 for the 210 matrices of a 30-block decoder. The
`progress` of the settings is told of each.
Paper: ASVD (arXiv 2312.05821) sorts all (piece, share) by perplexity and cuts the list where the budget is met; the
hull takes what a byte buys.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from eckart.compression.allocations.menus import Menu, floored, menus_of
from eckart.compression.allocations.rules import Sizes, Trial, least
from eckart.compression.pieces.piece import Piece
from eckart.compression.settings import Settings

SHARES = (0.9, 0.7, 0.5, 0.3)
_BEYOND = 10.0  # a loss that is no number counts as this many times the largest rise that is one


def sensitivity(pieces: Sequence[Piece], keep: float, settings: Settings, trial: Trial) -> Sizes:
    """The sizes that let the held-out loss rise least, as measured on one piece at a time.

    Args:
        pieces: The pieces, which have learned.
        keep: Share of their dense bytes, above 0 and at most 1.
        settings: Its `floor`, `multiple`, `roles` and `progress` count; of the options, `shares` (each above 0 and
            below 1) and `protect`.
        trial: Is called 1 + pieces × shares times at most.

    Raises:
        ValueError: A share is out of its range, the dense loss is no number, or the least sizes exceed the budget.
    """
    shares = sorted(settings.options.get("shares", SHARES), reverse=True)
    if not shares or not all(0 < share < 1 for share in shares):
        raise ValueError(f"shares: {shares}; give numbers above 0 and below 1, such as {SHARES}")
    menus, budget = menus_of(pieces, keep, settings)
    points = {piece.label: _measured(menus[piece.label], shares, piece.dense_bytes) for piece in pieces}
    sizes = {label: [menus[label].size(point) for point in each] for label, each in points.items()}
    rises = rises_of(pieces, sizes, trial, settings)
    menus = floored(menus, pieces, keep, settings)
    worst = max((rise for each in rises.values() for rise in each if math.isfinite(rise)), default=1.0)
    errors = {}
    for piece in pieces:
        menu, whole = menus[piece.label], _prices(piece, sizes[piece.label])
        finite = [rise if math.isfinite(rise) else _BEYOND * worst for rise in rises[piece.label]]
        errors[piece.label] = convex([*whole, piece.dense_bytes], [*finite, 0.0], menu.prices)
    return least(menus, errors, budget)


def rises_of(
    pieces: Sequence[Piece], sizes: Mapping[str, Sequence[int]], trial: Trial, settings: Settings
) -> dict[str, list[float]]:
    """By how much the held-out loss rises with one piece at a size and all others dense.

    Args:
        pieces: All pieces.
        sizes: Label of a piece → the sizes to try.
        trial: Is called once for the dense model, then once for each size.
        settings: Its `progress` is told.

    Returns:
        Label → the rises in the order of `sizes`; negative where the loss falls, inf where it is no number.

    Raises:
        ValueError: The dense loss is no number.
    """
    dense = {piece.label: piece.full for piece in pieces}
    total, done = 1 + sum(map(len, sizes.values())), 0

    def loss(label: str, size: int | None = None) -> float:
        nonlocal done
        found = trial(dense if size is None else dense | {label: size})
        done += 1
        if settings.progress is not None:
            settings.progress(done, total, label)
        return found if math.isfinite(found) else math.inf

    base = loss("dense")
    if not math.isfinite(base):
        raise ValueError("held_out: the dense model's loss on these batches is no finite number; give other batches")
    return {label: [loss(label, size) - base for size in each] for label, each in sizes.items()}


def convex(
    prices: Sequence[float],  # (q,)
    rises: Sequence[float],  # (q,)
    at: Tensor,  # (p,) float64
) -> Tensor:  # (p,) float64
    """The lower convex hull of measured points, straight between its corners and beyond the lowest price.

    A rise below 0 counts as 0.

    Example:
        >>> convex([30, 50, 70, 100], [6, 5, 1, 0], torch.tensor([10.0, 50.0, 85.0]))
        tensor([8.5000, 3.5000, 0.5000], dtype=torch.float64)
    """
    corners: list[tuple[float, float]] = []
    for x, y in sorted({(float(price), max(float(rise), 0.0)) for price, rise in zip(prices, rises, strict=True)}):
        if corners and x == corners[-1][0]:
            continue  # of one price, the least rise came first
        while len(corners) > 1 and _above(corners[-2], corners[-1], (x, y)):
            corners.pop()
        corners.append((x, y))
    x, y = np.array(corners).T
    found = np.interp(at.numpy(), x, y)
    slope = (y[1] - y[0]) / (x[1] - x[0]) if len(x) > 1 else 0.0
    return torch.from_numpy(found + slope * np.minimum(at.numpy() - x[0], 0.0))


def _above(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether the middle point lies on or above the line between its neighbours."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])


def _measured(menu: Menu, shares: Sequence[float], dense: int) -> list[int]:
    """The points to try, each once, without the dense one."""
    points = dict.fromkeys(menu.within(share * dense) for share in shares)
    return [point for point in points if point < len(menu.sizes) - 1]


def _prices(piece: Piece, sizes: Sequence[int]) -> list[float]:
    return [float(piece.bytes(size)) for size in sizes]
