"""How far one update may go: factors on parts of a slot's update, as scalars on the device.

    growth (Fira, APOLLO)   the part a ∘ X + L Vᵀ has a norm of at most γ times its last one; D Vᵀ is left alone
    clip                    the whole update has a norm of at most c √(mn): a root mean square of c for each entry

Norms come from rows: ‖a ∘ (X − R Vᵀ)‖² = Σ a_i² (‖X_i‖² − ‖R_i‖²) for an orthonormal V. Where rows are shared out, the
squares of all matrices of a step travel in one packed sum.
Paper: Fira's growth is held from the second step on; a step with a zero gradient is not a norm to grow from.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from eckart.optim.slot import Slot


def none(slots: Sequence[Slot]) -> None:
    """No limit."""


def growth(slots: Sequence[Slot]) -> None:
    free = [slot for slot in slots if slot.rows is not None]
    for slot, square in zip(free, _summed(free, [_outside(slot) for slot in free]), strict=True):
        norm, last = square.sqrt(), slot.state["last_norm"]
        factor = torch.where(last > 0, (slot.group["limit"] * last / norm).clamp(max=1.0), 1.0)
        factor = torch.where(norm > 0, factor, 1.0)
        slot.state["last_norm"].copy_(norm * factor)
        _shrink(slot, factor, own=False)


def clip(slots: Sequence[Slot]) -> None:
    for slot, square in zip(slots, _summed(slots, [_all(slot) for slot in slots]), strict=True):
        most = slot.group["limit"] * slot.parameter.numel() ** 0.5
        norm = square.sqrt()
        _shrink(slot, torch.where(norm > most, most / norm, 1.0), own=True)


def _outside(slot: Slot) -> Tensor:  # ()
    """‖a ∘ X + L Vᵀ‖² of the rows that are here."""
    assert slot.rows is not None
    squares = _squares(slot.X)
    if slot.low is not None:
        squares = (squares - _squares(slot.R)).clamp(min=0)
    return (slot.rows.square() * squares).sum()


def _all(slot: Slot) -> Tensor:  # ()
    """‖D Vᵀ + a ∘ X + L Vᵀ + E‖² of the rows that are here; E, which lies outside the subspace, adds its own."""
    total = slot.X.new_zeros(())
    F = slot.factor()
    if F is not None:
        total = total + F.square().sum()
    if slot.rows is not None:
        total = total + (slot.rows.square() * _squares(slot.X)).sum()
        if F is not None:
            total = total + 2 * (slot.rows * F * slot.R).sum()
    if slot.extra is not None:
        total = total + slot.extra.square().sum()
    return total.clamp(min=0)


def _squares(t: Tensor) -> Tensor:  # (..., p, 1)
    return torch.linalg.vector_norm(t, dim=-1, keepdim=True).square()


def _summed(slots: Sequence[Slot], squares: list[Tensor]) -> Sequence[Tensor]:
    """The sums over processes, of all slots in one."""
    if not squares:
        return []
    shared = [i for i, slot in enumerate(slots) if slot.shards.over_rows]
    if shared:
        packed = slots[shared[0]].shards.sum(torch.stack([squares[i] for i in shared]))
        for place, square in zip(shared, packed.unbind(), strict=True):
            squares[place] = square
    return squares


def _shrink(slot: Slot, factor: Tensor, own: bool) -> None:
    if own and slot.own is not None:
        slot.own = slot.own * factor
    slot.rows = None if slot.rows is None else slot.rows * factor
    slot.low = None if slot.low is None else slot.low * factor
    if own and slot.extra is not None:
        slot.extra = slot.extra * factor


LIMITERS: dict[str, Callable[[Sequence[Slot]], None]] = {"none": none, "growth": growth, "clip": clip}
