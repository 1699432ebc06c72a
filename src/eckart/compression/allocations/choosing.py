"""From a budget, or from given ranks, to the size of every piece.

Paper: none.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from eckart.compression.allocations.rules import Allocation, Sizes
from eckart.compression.allocations.trying import layers_of, mean_loss, standing
from eckart.compression.fitting.learning import Data
from eckart.compression.pieces.piece import Piece
from eckart.compression.settings import Settings
from eckart.nn.patterns import closest


def check_keep(keep: float) -> None:
    """Raise ValueError if a budget is not above 0 and at most 1."""
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep <= 1:
        raise ValueError(f"keep: {keep!r}; give the share of the matrices' bytes to keep, above 0 and at most 1")


def chosen_sizes(
    model: nn.Module,
    pieces: Sequence[Piece],
    keep: float,
    allocation: Allocation,
    settings: Settings,
    data: Data,
    held_out: Sequence[Any],
) -> Sizes:
    """The sizes that an allocation gives under a budget.

    Raises:
        ValueError: `keep` is not above 0 and at most 1, or buys less than the least sizes.
    """
    check_keep(keep)
    if keep == 1:
        return {piece.label: piece.full for piece in pieces}
    return allocation(pieces, keep, settings, _trial(model, pieces, data, held_out))


def given_sizes(pieces: Sequence[Piece], ranks: Mapping[str, int]) -> Sizes:
    """The sizes of pieces by their labels; what is not named stays dense.

    Raises:
        ValueError: A name is none of the pieces', or that of one matrix of several in a piece, or a size is out of its
            range.
    """
    holder = {name: piece for piece in pieces for name in (piece.label, *piece.names)}
    sizes = {piece.label: piece.full for piece in pieces}
    for name, rank in ranks.items():
        if name not in holder:
            raise ValueError(f"ranks: {name!r} is not among the selected matrices; closest: {closest(name, holder)}")
        piece = holder[name]
        if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank <= piece.full:
            raise ValueError(f"ranks: {rank!r} for {name}; give an integer from 0 to {piece.full} (dense)")
        if name != piece.label:
            raise ValueError(
                f"ranks: {name} is decomposed together with others, and their size counts {piece.form}; give "
                f"{piece.label!r} one size, or choose a method that gives each matrix a rank, such as 'two-sided'"
            )
        sizes[piece.label] = rank
    return sizes


def _trial(
    model: nn.Module, pieces: Sequence[Piece], data: Data, held_out: Sequence[Any]
) -> Callable[[Mapping[str, int]], float]:
    def trial(sizes: Mapping[str, int]) -> float:
        if not held_out:
            raise ValueError("held_out: no batches; this allocation compares losses on some: give held_out=")
        with standing(model, layers_of(pieces, sizes)):
            return mean_loss(model, held_out, data.loss, data.forward)

    return trial
