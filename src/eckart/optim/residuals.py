"""What becomes of the part of the gradient outside the subspace: each rule fills in a slot's update.

    update = D Vᵀ + a ∘ X + L Vᵀ + E        own D, rows a, outside (L = −a ∘ R), extra E

| rule | update | as |
|---|---|---|
| drop | D Vᵀ | D |
| norm-scaled (Fira) | D Vᵀ + s ∘ (X − R Vᵀ), s_i = ‖D_i‖ / ‖R_i‖ for each row | a = s, outside |
| whole (APOLLO) | s ∘ X | a = s |
| tensor (APOLLO-Mini) | s X, s = ‖D‖ / ‖R‖ | a = s |
| sgd | D Vᵀ + c (X − R Vᵀ) | a = c, outside |
| sign (FRUGAL) | D Vᵀ + c sign(X − R Vᵀ) | E |
| feedback (LDAdam) | D Vᵀ, and what is lost joins the next gradient | D |

Fira's residual is never formed: one product (D − s∘R) Vᵀ and one pass over X make the update. A rule takes all matrices
of a step, so that what needs a sum over processes sends it in one message.
Paper: Fira's code takes α R Vᵀ off instead of R Vᵀ and does not multiply the rest by α; ours is Algorithm 1. APOLLO's
s is √(r/q) of what all of Adam's moments would give (its equation 9): a factor for the learning rate, which the paper
leaves there for APOLLO and heuristically sets to √128 for APOLLO-Mini's r = 1.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from eckart.optim.sharding import together
from eckart.optim.step.slot import Slot
from eckart.optim.step.subspace import up

TINY = 1e-8


def drop(slot: Slot, D: Tensor) -> None:
    slot.own = D


def norm_scaled(slot: Slot, D: Tensor) -> None:
    slot.own = D
    slot.rows = _norm(D) / (_norm(slot.R) + TINY)
    slot.outside = True


def whole(slot: Slot, D: Tensor) -> None:
    slot.rows = _norm(D) / (_norm(slot.R) + TINY)


def tensor(slots: Sequence[Slot], directions: Sequence[Tensor]) -> None:
    """A limiter that needs ‖s X‖ = s ‖X‖ finds it known, for ‖X‖ travels along."""
    parts = [
        torch.stack([_norm(t).square().sum((-2, -1)) for t in (D, slot.R, slot.X)])
        for slot, D in zip(slots, directions, strict=True)
    ]
    for slot, squares in zip(slots, together([slot.shards.rows for slot in slots], parts), strict=True):
        top, bottom, whole = squares.sqrt().unbind()
        scale = top / (bottom + TINY)
        slot.rows, slot.square = scale[..., None, None], (scale * whole).square()


def sgd(slot: Slot, D: Tensor) -> None:
    slot.own = D
    slot.rows = slot.X.new_full((), slot.group["residual_scale"])
    slot.outside = True


def sign(slot: Slot, D: Tensor) -> None:
    slot.own = D
    outside = slot.X - up(slot.R, slot.V, slot.X.shape[-1])
    slot.extra = outside.sign_().mul_(slot.group["residual_scale"])


def feedback(slot: Slot, D: Tensor) -> None:
    """`slot.X` holds G and the error so far; what the subspace does not hold of it is the next one."""
    slot.own = D
    slot.get("error").copy_(slot.X - up(slot.R, slot.V, slot.X.shape[-1]))


def _norm(t: Tensor) -> Tensor:  # (..., p, 1)
    return torch.linalg.vector_norm(t, dim=-1, keepdim=True)


def _each(rule: Callable[[Slot, Tensor], None]) -> Callable[[Sequence[Slot], Sequence[Tensor]], None]:
    def over(slots: Sequence[Slot], directions: Sequence[Tensor]) -> None:
        for slot, D in zip(slots, directions, strict=True):
            rule(slot, D)

    return over


RESIDUALS: dict[str, Callable[[Sequence[Slot], Sequence[Tensor]], None]] = {
    "drop": _each(drop),
    "norm-scaled": _each(norm_scaled),
    "whole": _each(whole),
    "tensor": tensor,
    "sgd": _each(sgd),
    "sign": _each(sign),
    "feedback": _each(feedback),
}
ORTHONORMAL = ("norm-scaled", "sgd", "sign", "feedback")  # these take X − R Vᵀ for what is outside
FEEDBACK = ("feedback",)  # these keep a matrix of the gradient's size
FORMING = (*FEEDBACK, "sign")  # and these make one
