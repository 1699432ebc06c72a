"""What becomes of the moments when the basis changes from V to V', with C = Vᵀ V'.

    keep     they stay, in the new coordinates (the papers' GaLore, Fira, APOLLO)
    reset    zero, and bias correction starts anew (FRUGAL)
    rotate   the first moment turns: M ← M C (SUMO, Flora, GoLore); the second stays
    ldadam   m̂ ← m̂ C, v̂ ← |(v̂ − m̂²) (C∘C) + (m̂ C)²| on bias-corrected moments (LDAdam 2410.16103, SubTrack++)

M (p, r), C (r, r). Where the residual rule feeds back what is lost, `ldadam` adds what M loses to the gradient that
this step has: β₁/(1−β₁) (M Vᵀ − M C V'ᵀ). It has no part within V', so R = X V' stays, and all of it goes to the error.

For a random basis that is not orthonormal M C is the old momentum M Vᵀ seen through the new sketch: right on average,
and longer by √(q/r) each time. It shrinks by β₁ a step, so it grows for ever at a gap below ln(q/r) / (2 ln(1/β₁)).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from eckart.optim.step.slot import Slot
from eckart.optim.step.subspace import add_up

FIRST, SECOND = "exp_avg", "exp_avg_sq"


def keep(slot: Slot, old: Tensor, moments: dict[str, Tensor]) -> None:
    """Nothing changes."""


def reset(slot: Slot, old: Tensor, moments: dict[str, Tensor]) -> None:
    for moment in moments.values():
        moment.zero_()
    slot.state["since"].zero_()


def rotate(slot: Slot, old: Tensor, moments: dict[str, Tensor]) -> None:
    if FIRST in moments:
        moments[FIRST].copy_(moments[FIRST] @ _turn(old, slot.V).to(moments[FIRST].dtype))


def ldadam(slot: Slot, old: Tensor, moments: dict[str, Tensor]) -> None:
    m, v = moments[FIRST], moments[SECOND]
    beta1, beta2 = slot.group["betas"]
    steps = int(slot.state["since"])
    if steps == 0:
        return
    C = _turn(old, slot.V).to(m.dtype)
    first, second = 1 - beta1**steps, 1 - beta2**steps
    turned = m @ C
    if "error" in slot.state:  # then `slot.X` is this step's own sum
        add_up(slot.X, m, old, 1.0, beta1 / (1 - beta1))
        add_up(slot.X, turned, slot.V, 1.0, -beta1 / (1 - beta1))
    variance = (v / second - (m / first).square()) @ C.square()
    v.copy_((variance + (turned / first).square()).abs() * second)
    m.copy_(turned)


def _turn(old: Tensor, new: Tensor) -> Tensor:  # (..., r, r)
    """Vᵀ V'; between choices of columns, where one is the other."""
    return old.mT @ new if new.is_floating_point() else (old[:, None] == new).to(torch.float32)


TRANSPORTS: dict[str, Callable[[Slot, Tensor, dict[str, Tensor]], None]] = {
    "keep": keep,
    "reset": reset,
    "rotate": rotate,
    "ldadam": ldadam,
}
