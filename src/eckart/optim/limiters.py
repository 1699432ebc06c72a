"""How far one update may go: factors on parts of a slot's update, as scalars on the device, one for each matrix.

    growth (Fira, APOLLO)   S = a ∘ X + L Vᵀ ← S · min(1, γ ‖S_last‖ / ‖S‖): its norm grows by γ at most; D Vᵀ is left
    clip                    the whole update has a norm of at most c √(mn): a root mean square of c for each entry

Norms come from rows: ‖a ∘ (X − R Vᵀ)‖² = Σ a_i² (‖X_i‖² − ‖R_i‖²) for an orthonormal V (for one in 4 bits, nearly);
‖F Vᵀ‖² = ⟨F, F VᵀV⟩ for any V. Where rows are shared out, the squares of all matrices of a step travel in one packed
sum.
Paper: Fira's growth (Algorithm 1) is held from the second step on. A part that is zero is no norm to grow from: the
last one before it stands, where Fira's and APOLLO's codes would let the next step have 1e-8. So it is for a rounding:
what is left of a gradient of rank r or less, as that of a batch of few tokens is, would hold the rest down for long.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from eckart.optim.sharding import together
from eckart.optim.step.slot import Slot
from eckart.optim.step.subspace import down, row_squares

ROUNDING = 16  # × ε: shares of ‖X_i‖² that are none


def none(slots: Sequence[Slot]) -> None:
    """No limit."""


def growth(slots: Sequence[Slot]) -> None:
    free = [slot for slot in slots if slot.rows is not None]
    for slot, square in zip(free, _summed(free, _outside), strict=True):
        norm, last = square.sqrt(), slot.get("last_norm")
        factor = torch.where((last > 0) & (norm > 0), (slot.group["limit"] * last / norm).clamp(max=1.0), 1.0)
        last.copy_(torch.where(norm > 0, norm * factor, last))
        _shrink(slot, factor[..., None, None], own=False)


def clip(slots: Sequence[Slot]) -> None:
    for slot, square in zip(slots, _summed(slots, squared_norm), strict=True):
        most, norm = slot.group["limit"] * math.prod(slot.shape) ** 0.5, square.sqrt()
        _shrink(slot, torch.where(norm > most, most / norm, 1.0)[..., None, None], own=True)


def _outside(slot: Slot) -> Tensor:  # (), or (E,)
    """‖a ∘ X + L Vᵀ‖² of the rows that are here."""
    assert slot.rows is not None
    squares = row_squares(slot.X)
    if slot.outside:
        rest, least = squares - row_squares(slot.R), ROUNDING * torch.finfo(squares.dtype).eps * squares
        squares = torch.where(rest > least, rest, 0.0)
    return (slot.rows.square() * squares).sum((-2, -1))


def squared_norm(slot: Slot) -> Tensor:  # (), or (E,)
    """‖F Vᵀ + a ∘ X + E‖² of the rows that are here, with F = D + L."""
    total = slot.X.new_zeros(slot.X.shape[:-2])
    F, V = slot.factor(), slot.V
    if F is not None:
        total = total + (F * (F @ (V.mT @ V) if V.is_floating_point() else F)).sum((-2, -1))
    if slot.rows is not None:
        total = total + (slot.rows.square() * row_squares(slot.X)).sum((-2, -1))
        if F is not None:
            total = total + 2 * (slot.rows * F * slot.R).sum((-2, -1))
    if slot.extra is not None:
        total = total + slot.extra.square().sum((-2, -1))
        if F is not None:
            total = total + 2 * (F * down(slot.extra, V)).sum((-2, -1))
    return total.clamp(min=0)


def _summed(slots: Sequence[Slot], here: Callable[[Slot], Tensor]) -> list[Tensor]:  # (), or (E,), each
    """Squared norms over all processes: what a residual rule has found, the others from the rows that are here."""
    asked = [slot for slot in slots if slot.square is None]
    found = iter(together([slot.shards.rows for slot in asked], [here(slot) for slot in asked]))
    return [next(found) if slot.square is None else slot.square for slot in slots]


def _shrink(slot: Slot, factor: Tensor, own: bool) -> None:
    slot.rows = None if slot.rows is None else slot.rows * factor
    if own and slot.own is not None:
        slot.own = slot.own * factor
    if own and slot.extra is not None:
        slot.extra = slot.extra * factor


LIMITERS: dict[str, Callable[[Sequence[Slot]], None]] = {"none": none, "growth": growth, "clip": clip}
