"""LASER: a few matrices cut hard, the others left as they are.

    s_l = least size within `cut` of the rank;   Δ_l = loss(piece l at s_l, all else dense) − loss(dense)

The pieces are cut in the order of Δ_l for each byte that the cut saves, until the budget is met; the last one is cut no
further than needed. A cut that lowers the loss (the paper finds such, mostly in late MLPs) comes first.

Cost: 1 + pieces runs over the held-out batches.
Paper: LASER (arXiv 2312.13558) searches one matrix and one share at a time for the best task score and multiplies the
factors back, so its model is no smaller; we go on until the budget is met, and store factors.
"""

import math
from collections.abc import Sequence

from eckart.compression.allocations.menus import menus_of, spent
from eckart.compression.allocations.rules import Sizes, Trial
from eckart.compression.allocations.sensitivity import rises_of
from eckart.compression.pieces.piece import Piece
from eckart.compression.settings import Settings

CUT = 0.1


def selected(pieces: Sequence[Piece], keep: float, settings: Settings, trial: Trial) -> Sizes:
    """Few pieces at a small size, those that can bear it; all others dense.

    Args:
        pieces: The pieces, which have learned.
        keep: Share of their dense bytes, above 0 and at most 1.
        settings: Its `multiple` and `progress` count; of the options, `cut`, the share of the rank that a cut piece
            keeps (above 0, below 1; 0.1 by default). Floors do not.
        trial: Is called 1 + pieces times.

    Raises:
        ValueError: `cut` is out of its range, the dense loss is no number, or the budget is not met with all cut.
    """
    cut = settings.options.get("cut", CUT)
    if not 0 < cut < 1:
        raise ValueError(f"cut: {cut}; give the share of the rank that a cut matrix keeps, above 0 and below 1")
    menus, budget = menus_of(pieces, keep, settings)
    lowest = {piece.label: menus[piece.label].upto(cut * piece.full) for piece in pieces}
    if spent(menus, lowest) > budget:
        share = spent(menus, lowest) / sum(piece.dense_bytes for piece in pieces)
        raise ValueError(
            f"keep: {keep}, but with all matrices cut to {cut} of their rank they take {share:.4f} of their bytes; "
            "raise keep or lower cut"
        )
    points = {label: len(menu.sizes) - 1 for label, menu in menus.items()}
    spare = budget - spent(menus, points)
    if spare < 0:
        tried = {label: [menus[label].size(point)] for label, point in lowest.items() if point < points[label]}
        rises = rises_of(pieces, tried, trial, settings)
        saved = {label: menus[label].price(points[label]) - menus[label].price(lowest[label]) for label in tried}
        for label in sorted(tried, key=lambda label: _for_each_byte(rises[label][0], saved[label])):
            points[label] = lowest[label]
            spare += saved[label]
            if spare >= 0:
                points[label] = menus[label].within(menus[label].price(lowest[label]) + spare)
                break
    return {label: menus[label].size(point) for label, point in points.items()}


def _for_each_byte(rise: float, saved: float) -> float:
    return rise / saved if math.isfinite(rise) else math.inf
