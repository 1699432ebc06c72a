"""W ← (1 − η λ) W − η α (D Vᵀ + a ∘ X + L Vᵀ + E), in place; bfloat16 weights by stochastic rounding.

In float32 nothing of W's size is made. Other weights are read into float32 and written back: bfloat16 at random to one
of its two neighbours, so that updates below its precision act on average; float16 to the nearest.
Paper: none.
"""

import torch
from torch import Tensor

from eckart.linalg import stochastic_round
from eckart.optim.step.slot import Slot
from eckart.optim.step.subspace import add_up
from eckart.optim.step.view import turned

ROUNDING = 1  # what the random numbers are for, see `Slot.generator`


def write(slot: Slot) -> None:
    """Apply a slot's update to its parameter."""
    group = slot.group
    rate = float(group["lr"])
    keep, scale = 1 - rate * group["weight_decay"], -rate * group["scale"]
    P = slot.shards.here(slot.parameter.detach())
    W = turned(P, group["stack"], slot.left)
    in_place = W.dtype == slot.X.dtype and shares(W, P)
    target = W if in_place else W.to(slot.X.dtype, copy=True)
    F = slot.factor()
    if F is not None:
        add_up(target, F, slot.V, keep, scale)
    elif keep != 1:
        target.mul_(keep)
    if slot.rows is not None:
        target.addcmul_(slot.X, slot.rows, value=scale)
    if slot.extra is not None:
        target.add_(slot.extra, alpha=scale)
    if not in_place:
        back = target.mT if slot.left else target
        write_back(P, back.reshape(P.shape), slot.generator(slot.step, ROUNDING))


def write_back(P: Tensor, target: Tensor, generator: torch.Generator) -> None:
    """Round float32 to a parameter's type, in place."""
    P.copy_(stochastic_round(target, generator=generator) if P.dtype == torch.bfloat16 else target)


def shares(view: Tensor, whole: Tensor) -> bool:
    """Whether a tensor is a view of another's memory."""
    return view.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
