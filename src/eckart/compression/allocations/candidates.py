"""The best of several allocations, by the loss of the model that each of them gives on held-out text.

No rule is best for every model and budget: the second order of the loss says less the further a model is cut, and the
few tokens behind it are noise for small matrices. Powers of the energy below 1 and floors are what tempers a rule; a
run over held-out batches is what tells which of them to believe.

Cost: one run over the held-out batches for each candidate that differs from those before.
Paper: Swift-SVD (arXiv 2604.01609) chooses among 11 powers of a layer's importance in the same way.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial

from eckart.compression.allocations.rules import Allocation, Sizes, Trial, energy, hulls, uniform
from eckart.compression.pieces.piece import Piece
from eckart.compression.settings import Settings

CANDIDATES: dict[str, Allocation] = {
    "hulls": hulls,
    "hulls, power 0.75": partial(hulls, power=0.75),
    "hulls, power 0.5": partial(hulls, power=0.5),
    "hulls, power 0.75, floor 0.5": partial(hulls, power=0.75, floor=0.5),
    "hulls, floor 0.5": partial(hulls, floor=0.5),
    "hulls, no floor": partial(hulls, floor=0.0, protect=0.0),
    "energy": energy,
    "uniform": uniform,
}


class Chosen(dict[str, int]):
    """Sizes, and what they were chosen by.

    Args:
        sizes: Label of a piece → its size.
        losses: Name of a candidate → the held-out loss with its sizes.
    """

    def __init__(self, sizes: Mapping[str, int], losses: Mapping[str, float]) -> None:
        super().__init__(sizes)
        self.losses = dict(losses)

    @property
    def best(self) -> str:
        """The candidate that was taken: the first of those with the least loss; the first of all where none is finite.

        Example:
            >>> Chosen({"0": 2}, {"uniform": 3.0, "hulls": 2.5, "energy": 2.5, "mine": float("nan")}).best
            'hulls'
        """
        return min(self.losses, key=lambda name: _comparable(self.losses[name]))

    def __str__(self) -> str:
        return (
            f"sizes by {self.best!r}, held-out loss {self.losses[self.best]:.4f}: the best of {len(self.losses)} "
            f"allocations, of which the last gives {max(self.losses.values()):.4f}"
        )


def candidates(
    pieces: Sequence[Piece],
    keep: float,
    settings: Settings,
    trial: Trial,
    *,
    among: Mapping[str, Allocation] | None = None,
) -> Chosen:
    """The sizes of the allocation with the least held-out loss.

    Args:
        pieces: The pieces, which have learned.
        keep: Share of their dense bytes, above 0 and at most 1.
        settings: As the candidates take them; its `progress` is told of each.
        trial: Is called once for each candidate whose sizes no earlier one has.
        among: Name → allocation, the preferred first; None for `CANDIDATES`.

    Returns:
        The sizes, with `losses` of all candidates and the `best` one's name.

    Raises:
        ValueError: There are no candidates, or the least sizes take more than the budget.

    Warns:
        UserWarning: No candidate gives a finite loss; the first one's sizes are returned.
    """
    among = CANDIDATES if among is None else among
    if not among:
        raise ValueError("among: no candidates; give at least one allocation")
    sizes: dict[str, Sizes] = {}
    losses: dict[str, float] = {}
    for done, (name, allocation) in enumerate(among.items(), 1):
        sizes[name] = allocation(pieces, keep, settings, trial)
        same = next((other for other in losses if sizes[other] == sizes[name]), None)
        losses[name] = trial(sizes[name]) if same is None else losses[same]
        if settings.progress is not None:
            settings.progress(done, len(among), name)
    if not any(map(math.isfinite, losses.values())):
        warnings.warn(
            f"keep: {keep}: no allocation gives a finite held-out loss ({', '.join(losses)}); the first one is taken",
            stacklevel=2,
        )
    best = Chosen({}, losses).best
    return Chosen(sizes[best], losses)


def _comparable(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
