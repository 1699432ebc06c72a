"""Before a step's direction: the count, the basis (renewed where it is due, and moments brought along), R = X V.

    due: no basis was found yet, or a multiple of the gap lies between the last refresh and now; where each matrix has
         a gap of its own, so many steps after its last refresh

A zero gradient never renews a basis, and before the first basis was found it is no step at all: a distributed
checkpoint makes such steps to fill the state before it loads. `schedule`:

    fixed       every `gap` steps, all matrices at once (the papers')
    staggered   the same, each matrix at a time of its own, so that no step is much longer than another
    adaptive    a gap doubles where the old basis still holds `adapt_above` of what the new one does of the gradient
                (captured energy: unlike Q-GaLore's cosines it does not hang on signs)
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from eckart.linalg._check import magnitude
from eckart.optim.noting import note_refresh
from eckart.optim.projectors import PROJECTORS
from eckart.optim.sharding import together
from eckart.optim.step.keeping import basis, keep_basis, keep_moments, moments
from eckart.optim.step.slot import Slot
from eckart.optim.step.subspace import down
from eckart.optim.transports import TRANSPORTS, keep

SCHEDULES = ("fixed", "staggered", "adaptive")
GOLDEN = 0.6180339887498949  # multiples of it fill the gap evenly, however many matrices there are


def prepare(slots: Sequence[Slot]) -> list[Slot]:
    """Count the step, see to the bases and project; gives those that have a step to make."""
    for slot in slots:
        if "error" in slot.state:
            slot.X = slot.X + slot.get("error")
    zero = _look([slot for slot in slots if _is_new(slot) or _due(slot)])
    ready = [slot for slot in slots if not (_is_new(slot) and slot.index in zero)]
    renewed = []
    for slot in ready:
        first, due = _is_new(slot), _due(slot) and slot.index not in zero
        slot.state["step"] += 1
        slot.V = basis(slot)
        if first:
            slot.state["basis_step"].copy_(slot.state["step"])
            slot.V = keep_basis(slot, PROJECTORS[slot.group["projector"]].first(slot))
        if due and not first:
            renewed.append((slot, _renew(slot)))
        else:
            slot.R = down(slot.X, slot.V) if slot.given is None else slot.given
        if due or first:
            note_refresh(slot, None if first else renewed[-1][1])
    _adapt([pair for pair in renewed if pair[0].group["schedule"] == "adaptive"])
    return ready


def stays(slot: Slot) -> bool:
    """Whether the step that comes keeps the basis."""
    return not _is_new(slot) and not _due(slot) and _renewed_at_gaps(slot)


def project(slot: Slot) -> Tensor:  # (..., p, r)
    """R in the basis that the state holds; nothing changes."""
    return down(slot.X, basis(slot))


def _look(slots: Sequence[Slot]) -> set[int]:
    """Find the peaks of gradients that a basis is due for; gives the indices of those that are zero. One host read."""
    if not slots:
        return set()
    peaks = together([slot.shards.rows for slot in slots], [_peak(slot.X) for slot in slots], largest=True)
    for slot, peak in zip(slots, peaks, strict=True):
        slot.peak = peak
    highest = [peak.amax() if peak.numel() else peak.new_zeros(()) for peak in peaks]
    batches = [slot.shards.group if slot.shards.batch else None for slot in slots]
    highest = [each.to(highest[0]) for each in together(batches, highest, largest=True)]
    found = dict(zip((slot.index for slot in slots), torch.stack(highest).tolist(), strict=True))
    for slot in slots:
        if not math.isfinite(found[slot.index]):  # told here on a GPU, where looking at each step would wait for it
            raise ValueError(f"{slot.name}: its gradient, for which a new basis is due, holds NaN or infinity")
    return {index for index, peak in found.items() if peak == 0}


def _peak(X: Tensor) -> Tensor:  # (..., 1, 1)
    """The largest magnitude; 0 of no rows."""
    if not X.numel():
        return X.new_zeros(*X.shape[:-2], 1, 1)
    if X.ndim == 2:
        return magnitude(X).view(1, 1)
    return torch.maximum(-X.amin((-2, -1), keepdim=True), X.amax((-2, -1), keepdim=True))


def _renew(slot: Slot) -> Tensor:
    """Another basis, the moments in its coordinates, R; gives the old basis."""
    transport, renew = TRANSPORTS[slot.group["transport"]], PROJECTORS[slot.group["projector"]].renew
    assert renew is not None
    watched = transport is not keep or slot.seen is not None or slot.group["schedule"] == "adaptive"
    old = slot.V.clone() if watched else slot.V  # which is overwritten
    slot.moments = moments(slot)
    slot.state["basis_step"].copy_(slot.state["step"])
    slot.V = keep_basis(slot, renew(slot))
    slot.R = down(slot.X, slot.V)
    if transport is not keep:
        transport(slot, old, slot.moments)
        keep_moments(slot, slot.moments)
    return old


def _adapt(renewed: Sequence[tuple[Slot, Tensor]]) -> None:
    """Double the gap of those whose old basis still held enough."""
    squares = [torch.stack([down(slot.X, old).square().sum(), slot.R.square().sum()]) for slot, old in renewed]
    for (slot, _), (before, now) in zip(renewed, together([s.shards.group for s, _ in renewed], squares), strict=True):
        if before >= slot.group["adapt_above"] * now:
            slot.state["gap"] *= 2


def _is_new(slot: Slot) -> bool:
    return int(slot.state["basis_step"]) < 0


def _due(slot: Slot) -> bool:
    """Whether the step that comes is one to renew the basis at."""
    if not _renewed_at_gaps(slot):
        return False
    if "gap" in slot.state:
        return int(slot.state["step"]) + 1 - int(slot.state["basis_step"]) >= int(slot.state["gap"])
    gap = slot.group["gap"]
    offset = int(slot.index * GOLDEN % 1 * gap) if slot.group["schedule"] == "staggered" else 0
    now, last = int(slot.state["step"]) + offset, int(slot.state["basis_step"]) - 1 + offset
    return now // gap > last // gap


def _renewed_at_gaps(slot: Slot) -> bool:
    """Else the projector moves the basis after each step."""
    return PROJECTORS[slot.group["projector"]].renew is not None
