"""Rules without second moments: momentum, Lion (2302.06675), sign."""

from collections.abc import Sequence

import torch
from torch import Tensor

from eckart.optim.inner.inner import Moments
from eckart.optim.step.slot import Slot


def momentum(slots: Sequence[Slot], moments: Sequence[Moments]) -> list[Tensor]:
    m = [each["exp_avg"] for each in moments]
    torch._foreach_lerp_(m, [slot.R for slot in slots], 1 - slots[0].group["betas"][0])
    return list(torch._foreach_mul(m, 1.0))


def lion(slots: Sequence[Slot], moments: Sequence[Moments]) -> list[Tensor]:
    beta1, beta2 = slots[0].group["betas"]
    R, m = [slot.R for slot in slots], [each["exp_avg"] for each in moments]
    D = list(torch._foreach_sign(torch._foreach_lerp(m, R, 1 - beta1)))
    torch._foreach_lerp_(m, R, 1 - beta2)
    return D


def sign(slots: Sequence[Slot], moments: Sequence[Moments]) -> list[Tensor]:
    return list(torch._foreach_sign([slot.R for slot in slots]))
