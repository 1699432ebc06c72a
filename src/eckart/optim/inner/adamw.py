"""Adam's direction, by torch's fused kernel: one pass over R, both moments and D.

The kernel moves a parameter by −lr D; a parameter of zeros and lr = −1 leave D itself.
Paper: none (1412.6980); weight decay is applied where the update is written.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam

from eckart.optim.inner.inner import Moments
from eckart.optim.step.slot import Slot


def adamw(slots: Sequence[Slot], moments: Sequence[Moments]) -> list[Tensor]:
    group = slots[0].group
    steps = [int(slot.state["since"]) for slot in slots]
    first, second = ([each[name] for each in moments] for name in ("exp_avg", "exp_avg_sq"))
    return adam_directions([slot.R for slot in slots], first, second, steps, group["betas"], group["eps"])


def adam_directions(
    grads: list[Tensor],
    first: list[Tensor],
    second: list[Tensor],
    steps: list[int],
    betas: tuple[float, float],
    eps: float,
) -> list[Tensor]:
    """m̂ / (√v̂ + ε) of each, with the moments moved on.

    Args:
        grads: Float tensors.
        first: Of their shapes and types, changed in place.
        second: The same.
        steps: How many steps each has made, this one included.
        betas: Decay of the first and the second moment.
        eps: ε.
    """
    grads = [_laid_as(grad, m) for grad, m in zip(grads, first, strict=True)]
    D = [torch.zeros_like(grad) for grad in grads]
    adam(
        D, grads, first, second, [], steps_before(steps, grads), fused=True, amsgrad=False,
        beta1=betas[0], beta2=betas[1], lr=-1.0, weight_decay=0.0, eps=eps, maximize=False, has_complex=False,
    )  # fmt: skip
    return D


def steps_before(steps: Sequence[int], beside: Sequence[Tensor]) -> list[Tensor]:
    """How many steps came before, for the kernel: filled in where the tensors are, as a copy would be waited for."""
    return [
        torch.full((), float(step - 1), dtype=torch.float32, device=each.device)
        for step, each in zip(steps, beside, strict=True)
    ]


def _laid_as(t: Tensor, other: Tensor) -> Tensor:
    """With the strides of another: the kernel goes through memory, whatever stands where."""
    return t if t.stride() == other.stride() else torch.empty_like(other, dtype=t.dtype).copy_(t)
