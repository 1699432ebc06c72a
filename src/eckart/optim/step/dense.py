"""AdamW for what is not trained in a subspace: vectors, embeddings, heads. Torch's fused kernel, moments in float32."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from eckart.optim.inner.adamw import adam_directions, steps_before
from eckart.optim.sharding import agreed, gradient, here
from eckart.optim.step.writing import write_back


def start(p: Tensor, state: dict[str, Any]) -> None:
    """Put moments of zeros into a parameter's state."""
    state["step"] = torch.zeros((), dtype=torch.float32)
    dtype = torch.promote_types(p.dtype, torch.float32)
    state["exp_avg"] = torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)
    state["exp_avg_sq"] = torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)


def moving(parameters: list[Tensor], states: list[dict[str, Any]]) -> list[bool]:
    """Whether each has made a step or has a gradient that is not zero; asked of the gradient until then.

    A distributed checkpoint makes a step of zero gradients to fill the state before it loads: that is none.
    """
    new = [i for i, state in enumerate(states) if not int(state["step"])]
    moves = [True] * len(parameters)
    if new:
        counts = [gradient(parameters[i]).count_nonzero() for i in new]
        some = torch.stack([each.to(counts[0].device) for each in counts])
        for i, number in zip(new, agreed(some, [parameters[i] for i in new]).tolist(), strict=True):
            moves[i] = number > 0
    return moves


def step(
    parameters: list[Tensor],
    states: list[dict[str, Any]],
    group: dict[str, Any],
    source: Callable[[int], torch.Generator],
) -> None:
    """One step of AdamW on parameters of one group.

    Args:
        parameters: With gradients.
        states: Theirs.
        group: lr, betas, eps, weight_decay.
        source: Called with a position in the list: of its stochastic rounding.
    """
    for state in states:
        state["step"] += 1
    parts = [_part(p, state) for p, state in zip(parameters, states, strict=True)]
    fused = [part for part in parts if part[0].numel() and _alike(*part[:3])]
    rate, decay, betas, eps = float(group["lr"]), group["weight_decay"], group["betas"], group["eps"]
    if fused:
        P, G, first, second = map(list, zip(*(part[:4] for part in fused), strict=True))
        before = steps_before([part[4] for part in fused], P)
        adamw(
            P, G, first, second, [], before, fused=True, amsgrad=False, beta1=betas[0], beta2=betas[1],
            lr=rate, weight_decay=decay, eps=eps, maximize=False,
        )  # fmt: skip
    for i, (W, grad, m, v, t) in enumerate(parts):
        if W.numel() and not _alike(W, grad, m):
            (D,) = adam_directions([grad.to(m.dtype)], [m], [v], [t], betas, eps)
            write_back(W, W.to(m.dtype).mul_(1 - rate * decay).add_(D, alpha=-rate), source(i))


def _part(p: Tensor, state: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Weight, gradient and moments of this process, and the step."""
    return here(p.detach()), gradient(p), here(state["exp_avg"]), here(state["exp_avg_sq"]), int(state["step"])


def _alike(W: Tensor, grad: Tensor, m: Tensor) -> bool:
    """Whether the kernel can take them together: of one type, and one entry at one place in memory."""
    return W.dtype == grad.dtype == m.dtype and W.stride() == grad.stride() == m.stride()
