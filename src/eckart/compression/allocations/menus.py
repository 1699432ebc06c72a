"""What a piece may become: for each of its sizes the bytes that it takes and the error that it leaves.

The least size is one multiple of `multiple` (dense, where the piece is smaller), or 0 where a remainder is left of the
matrix (`smallest`); a size that takes no less than what stands there, which is the price of full size, is not offered.
The bytes are the piece's own count, so its permutations, its remainder and its dtype are in them, and pieces of any
kind share one budget.

A floor is a least share of the dense bytes. Keys and values that several query heads share (grouped-query attention)
have a higher one: they are few bytes, and each of their errors is met by every head of its group.
Paper: none; that uniform shares make models with grouped queries collapse is what reruns of SVD-LLM show.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eckart.compression.pieces.piece import Piece
from eckart.compression.settings import Settings

PROTECT = 0.75


@dataclass(frozen=True)
class Menu:
    """The sizes on offer, ascending; the last is full, which takes the dense bytes and leaves no error."""

    sizes: Tensor  # (p,) int64
    prices: Tensor  # (p,) float64, bytes
    errors: Tensor  # (p,) float64, squared, in the metric

    def size(self, point: int) -> int:
        """The size of a point."""
        return int(self.sizes[point])

    def price(self, point: int) -> float:
        """The bytes of a point."""
        return float(self.prices[point])

    def within(self, budget: float) -> int:
        """The point of the largest size that a budget of bytes buys, or else of the least."""
        return _last(self.prices <= budget)

    def upto(self, size: float) -> int:
        """The point of the largest size up to this one, or else of the least."""
        return _last(self.sizes <= size)

    def above(self, point: int) -> "Menu":
        """The menu without what is below a point."""
        return Menu(self.sizes[point:], self.prices[point:], self.errors[point:])


Menus = dict[str, Menu]  # label of a piece → its menu


def menu_of(piece: Piece, multiple: int = 1) -> Menu:
    """What a piece may become, its sizes multiples of `multiple` below full."""
    least = piece.smallest and multiple
    sizes = torch.tensor([*range(least, piece.full, multiple), piece.full])
    prices = torch.tensor([*map(piece.bytes, sizes[:-1].tolist()), standing_bytes(piece)], dtype=torch.float64)
    tails = torch.zeros(piece.full + 1, dtype=torch.float64)
    energies = piece.spectrum.detach().to("cpu", torch.float64).square()
    tails[: len(energies)] = energies.flip(0).cumsum(0).flip(0)
    offered = (prices < prices[-1]) | (sizes == piece.full)
    errors = tails[sizes]
    errors[-1] = 0
    return Menu(sizes[offered], prices[offered], errors[offered])


def standing_bytes(piece: Piece) -> int:
    """What a piece's matrices take as they stand: their dense bytes, or less where they are compressed already."""
    held = [each for matrix in piece.members.values() if (each := getattr(matrix.module, "weight_bytes", None))]
    return sum(held) if held and len(held) == len(piece.members) else piece.dense_bytes


def menus_of(pieces: Sequence[Piece], keep: float, settings: Settings) -> tuple[Menus, float]:
    """The menus of pieces, and the bytes that all of them may take.

    Raises:
        ValueError: The least sizes take more than that.
    """
    menus = {piece.label: menu_of(piece, settings.multiple) for piece in pieces}
    dense = sum(piece.dense_bytes for piece in pieces)
    least = sum(menu.price(0) for menu in menus.values())
    if least > keep * dense:
        raise ValueError(
            f"keep: {keep}, but the least that these matrices can take is {least / dense:.4f} of their bytes, at sizes "
            f"that are multiples of {settings.multiple}; raise keep, lower multiple, or choose another method"
        )
    return menus, keep * dense


def floored(
    menus: Menus,
    pieces: Sequence[Piece],
    keep: float,
    settings: Settings,
    *,
    floor: float | None = None,
    protect: float | None = None,
) -> Menus:
    """The menus without what is below the floors; where not all floors fit the budget, all are lowered alike.

    Args:
        menus: The whole menus.
        pieces: Their pieces.
        keep: The share that all pieces may take together.
        settings: `floor` and `roles`, and of the options `protect`.
        floor: Instead of the settings' one: the least share, as a share of `keep`.
        protect: How far the floor of shared keys and values is on the way from the others' to 1, which is dense.
            None: the option, 0.75 where there is none.

    Raises:
        ValueError: `protect` is not from 0 to 1.
    """
    lowest = keep * (settings.floor if floor is None else floor)
    protect = settings.options.get("protect", PROTECT) if protect is None else protect
    if not 0 <= protect <= 1:
        raise ValueError(f"protect: {protect}; give a number from 0 (no floor of their own) to 1 (dense)")
    shared = shared_heads(settings)
    higher = lowest + protect * (1 - lowest)
    shares = {piece.label: lowest if shared.isdisjoint(piece.names) else higher for piece in pieces}
    dense = {piece.label: piece.dense_bytes for piece in pieces}

    def points(part: float) -> dict[str, int]:
        return {label: menus[label].within(part * share * dense[label]) for label, share in shares.items()}

    part = largest_part(lambda part: spent(menus, points(part)) <= keep * sum(dense.values()))
    return {label: menus[label].above(point) for label, point in points(part).items()}


def shared_heads(settings: Settings) -> set[str]:
    """The matrices whose keys or values several query heads share."""
    return {
        name
        for name, role in settings.roles.items()
        if role.kind in ("k", "v", "kv") and role.heads and role.kv_heads and role.kv_heads < role.heads
    }


def largest_part(fits: Callable[[float], bool]) -> float:
    """The largest number from 0 to 1 that still fits, where smaller ones fit whenever larger ones do, and 0 does."""
    if fits(1.0):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def spent(menus: Menus, points: Mapping[str, int]) -> float:
    """The bytes of a point of each menu, all together."""
    return sum(menu.price(points[label]) for label, menu in menus.items())


def _last(fitting: Tensor) -> int:  # (p,) bool
    return int(fitting.nonzero()[-1]) if bool(fitting.any()) else 0
