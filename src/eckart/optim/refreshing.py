"""Before a step's direction: the count, the basis (renewed where it is due, and moments brought along), R = X V.

    due: no basis was found yet, or a multiple of the gap lies between the last refresh and now

A zero gradient never renews a basis, and before the first basis was found it is no step at all: a distributed
checkpoint makes such steps to fill the state before it loads. `schedule`:

    fixed       every `gap` steps, all matrices at once (the papers')
    staggered   the same, each matrix at a time of its own, so that no step is much longer than another
    adaptive    a gap doubles where the old basis still holds `adapt_above` of what the new one does of the gradient
                (captured energy: unlike Q-GaLore's cosines it does not hang on signs)
"""

import torch
from torch import Tensor

from eckart.optim.keeping import basis, keep_basis, keep_moments, moments
from eckart.optim.projectors import PROJECTORS
from eckart.optim.slot import Slot
from eckart.optim.subspace import down
from eckart.optim.transports import TRANSPORTS, keep

SCHEDULES = ("fixed", "staggered", "adaptive")
GOLDEN = 0.6180339887498949  # multiples of it fill the gap evenly, however many matrices there are


def prepare(slot: Slot) -> bool:
    """Count the step, see to the basis and project; whether there is a step to make."""
    state, projector = slot.state, PROJECTORS[slot.group["projector"]]
    new = int(state["basis_step"]) < 0
    if new and slot.is_zero():
        return False
    state["step"] += 1
    if "error" in state:
        slot.X = slot.X + slot.get("error")
    if new:
        state["basis_step"].copy_(state["step"])
        slot.V = keep_basis(slot, projector.first(slot))
        slot.R = down(slot.X, slot.V)
        return True
    slot.V = basis(slot)
    if not _due(slot) or slot.is_zero():
        slot.R = down(slot.X, slot.V)
        return True
    _renew(slot)
    return True


def _renew(slot: Slot) -> None:
    """Another basis, the moments in its coordinates, R."""
    transport = TRANSPORTS[slot.group["transport"]]
    old = slot.V.clone()
    slot.state["basis_step"].copy_(slot.state["step"])
    slot.V = keep_basis(slot, PROJECTORS[slot.group["projector"]].renew(slot))
    slot.R = down(slot.X, slot.V)
    if transport is not keep:
        found = moments(slot)
        transport(slot, _turn(old, slot.V), found)
        keep_moments(slot, found)
    if slot.group["schedule"] == "adaptive":
        squares = slot.shards.sum(torch.stack([down(slot.X, old).square().sum(), slot.R.square().sum()]))
        if squares[0] >= slot.group["adapt_above"] * squares[1]:
            slot.state["gap"] *= 2


def _turn(old: Tensor, new: Tensor) -> Tensor:  # (..., r, r)
    """Vᵀ V'; between choices of columns, where one is the other."""
    return old.mT @ new if new.is_floating_point() else (old[:, None] == new).to(torch.float32)


def _due(slot: Slot) -> bool:
    gap = int(slot.state["gap"]) if "gap" in slot.state else slot.group["gap"]
    offset = int(slot.index * GOLDEN % 1 * gap) if slot.group["schedule"] == "staggered" else 0
    now, last = (int(slot.state[key]) - 1 + offset for key in ("step", "basis_step"))
    return now // gap > last // gap
