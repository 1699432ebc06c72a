"""What becomes of the moments when the basis changes from V to V', with C = Vᵀ V'.

    keep     they stay, in the new coordinates (the papers' GaLore, Fira, APOLLO)
    reset    zero, and bias correction starts anew (FRUGAL)
    rotate   the first moment turns: M ← M C (SUMO, Flora); the second stays
    ldadam   M ← M C, v ← |(C∘C)ᵀ acting on (v − M²)| + (M C)²: second moments under a rotation (LDAdam, 2410.16103)

M (p, r), C (r, r). For a basis that is random and not orthonormal C is VᵀV' all the same: M Vᵀ V' is the old momentum
seen through the new sketch.
"""

from collections.abc import Callable

from torch import Tensor

from eckart.optim.slot import Slot

FIRST, SECOND = "exp_avg", "exp_avg_sq"


def keep(slot: Slot, C: Tensor, moments: dict[str, Tensor]) -> None:
    """Nothing changes."""


def reset(slot: Slot, C: Tensor, moments: dict[str, Tensor]) -> None:
    for moment in moments.values():
        moment.zero_()
    slot.state["since"].zero_()


def rotate(slot: Slot, C: Tensor, moments: dict[str, Tensor]) -> None:
    if FIRST in moments:
        moments[FIRST].copy_(moments[FIRST] @ C)


def ldadam(slot: Slot, C: Tensor, moments: dict[str, Tensor]) -> None:
    m, v = moments[FIRST], moments[SECOND]
    beta1, beta2 = slot.group["betas"]
    steps = int(slot.state["since"])
    if steps == 0:
        return
    first, second = 1 - beta1**steps, 1 - beta2**steps  # bias corrections: statistics turn, not their running sums
    turned = (m / first) @ C
    variance = (v / second - (m / first).square()) @ C.square()
    v.copy_((variance.abs() + turned.square()) * second)
    m.copy_(turned * first)


TRANSPORTS: dict[str, Callable[[Slot, Tensor, dict[str, Tensor]], None]] = {
    "keep": keep,
    "reset": reset,
    "rotate": rotate,
    "ldadam": ldadam,
}
