"""A matrix's state: what is kept between steps, all flat tensors, and the slot that a step works in.

step, since, basis_step   how many steps; since the moments were reset; which one renewed the basis last (−1: none)
side                      1 where the basis is on the left
basis                     (q, r); in 4 bits codes and scales; absent where it is drawn anew from the seed
moments                   as the inner rule says, (p, r)
last_norm, gap, error     of the limiter `growth`, the schedule `adaptive`, the residual `feedback`
and what the projector says (`Projector.state`)
"""

from typing import Any

import torch
from torch import Tensor

from eckart.linalg import orthonormalize, working_dtype
from eckart.optim.projectors import PROJECTORS
from eckart.optim.residuals import FEEDBACK
from eckart.optim.sharding import Shards, gradient
from eckart.optim.step.keeping import keep_basis, start_moments, zeros
from eckart.optim.step.slot import Slot
from eckart.optim.step.view import is_left, rank_of, turned

HOST = ("step", "since", "basis_step", "side", "gap")  # scalars that the host reads


def slot_of(p: Tensor, state: dict[str, Any], group: dict[str, Any], name: str, index: int) -> Slot:
    """The slot of a parameter with a gradient; its state is made where there is none."""
    shards = Shards(p, group["stack"])
    new = not state
    if new:
        left = is_left(tuple(p.shape), group["side"], shards.dim, group["stack"], name)
        state |= {key: torch.tensor(0, dtype=torch.int64) for key in HOST[:2]}
        state["basis_step"] = torch.tensor(-1, dtype=torch.int64)
        state["side"] = torch.tensor(int(left), dtype=torch.int64)
    left = bool(state["side"])
    grad = gradient(p)
    X = turned(grad.to(working_dtype(grad.dtype)), group["stack"], left)
    nothing, rank = X.new_empty(0), rank_of(group["rank"], p.shape, group["stack"])
    slot = Slot(p, name, state, group, shards, index, rank, left, X, nothing, nothing)
    if new:
        _start(slot)
    return slot


def _start(slot: Slot) -> None:
    state, group, X = slot.state, slot.group, slot.X
    if group["projector"] != "coordinates":  # which stay undrawn until there is a gradient
        slot.V = keep_basis(slot, orthonormalize(slot.noise()))
    else:
        slot.V = keep_basis(slot, PROJECTORS["coordinates"].first(slot))
    start_moments(slot)
    if group["limiter"] == "growth":
        state["last_norm"] = slot.shards.place(X.new_zeros(X.shape[:-2]), by_rows=False)
    if group["schedule"] == "adaptive":
        state["gap"] = torch.tensor(group["gap"], dtype=torch.int64)
    if group["residual"] in FEEDBACK:
        state["error"] = zeros(slot, "gradient")
    for key, kind in PROJECTORS[group["projector"]].state.items():
        state[key] = zeros(slot, kind)
