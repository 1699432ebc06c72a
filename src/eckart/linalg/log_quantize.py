"""Eight bits for numbers of many sizes: a sign and a logarithm, for the moments of an optimizer.

Each block of `block` entries along the last dimension keeps its largest magnitude as a float32 scale; an entry's code
is its level k, a magnitude of scale · 2^((k − K)/8), and 0 for zero: K = 127 levels and a sign, or K = 255 for what is
never negative. Neighbouring levels lie 9 % apart; 15.75 or 31.75 octaves below the scale are covered. Rounding is
stochastic, of mean x: a moving average that changes by 0.1 % a step would never move if it went to the nearest level.
What is never negative does not become 0 unless it is 0, so that nothing is divided by a moment that was lost.

One rounding errs by up to 9 %, 3.7 % in the root mean square. An average v that is rounded at every step leaves its
level with a chance of its change over the distance to the next, so that errors don't pile up as 1/(1−β) of them would:
the relative variance of v is about half the distance times E|g² − v|/v, whatever β is (21 % for normal g, so 10 % of
√v). Bytes: 1 for an entry, 4 for a block. Cost O(numel).

Paper: Dettmers et al. (2110.02861) use a table of dynamic codes and the nearest; ours is computed and stochastic.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from eckart.linalg._check import require_count, seeded

STEPS = 8  # levels for each octave


def log_quantize(
    x: Tensor,  # (..., r)
    *,
    signed: bool = True,
    block: int = 64,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:  # (..., r) uint8, (..., ⌈r / block⌉) float32
    """Round a tensor to 8-bit logarithmic codes.

    Args:
        x: Floating-point; finite (not checked: no host read).
        signed: Whether x has signs; else it must not be negative.
        block: Entries of the last dimension that share a scale, at least 1; the last block may be shorter.
        generator: Source of the rounding, on x's device. None: the same fixed seed at each call, so hand one in where
            errors of successive calls must be independent.

    Returns:
        codes, in x's shape, and scales.

    Raises:
        ValueError: block is below 1.

    Example:
        >>> codes, scales = log_quantize(torch.tensor([[4.0, -2.0, 0.0, 1.0, 0.5]]), block=4)
        >>> log_dequantize(codes, scales, block=4), scales
        (tensor([[ 4.0000, -2.0000,  0.0000,  1.0000,  0.5000]]), tensor([[4.0000, 0.5000]]))
    """
    require_count("block", block, low=1)
    top = 127 if signed else 255
    size = min(block, max(x.shape[-1], 1))
    cut = pad(x.detach().float(), (0, -x.shape[-1] % size)).unflatten(-1, (-1, size))
    scales = cut.abs().amax(-1)
    share = cut.abs() / torch.where(scales > 0, scales, 1.0).unsqueeze(-1)
    low = (top + STEPS * share.log2()).floor().clamp(0, top)  # −∞ for 0
    ratio = share / torch.exp2((low - top) / STEPS)  # from 1 to 2^(1/8) where low ≥ 1
    step = 2 ** (1 / STEPS)
    chance = torch.where(low >= 1, (ratio - 1) / (step - 1), ratio / step)
    draw = torch.rand(cut.shape, generator=seeded(x.device, generator), device=x.device)
    level = (low + (draw < chance)).clamp(0 if signed else 1, top)
    codes = torch.where(share > 0, level, 0.0).to(torch.uint8)
    if signed:
        codes = codes | (cut.signbit().to(torch.uint8) << 7)
    return codes.flatten(-2)[..., : x.shape[-1]].contiguous(), scales


def log_dequantize(
    codes: Tensor,  # (..., r) uint8
    scales: Tensor,  # (..., ⌈r / block⌉)
    *,
    signed: bool = True,
    block: int = 64,
) -> Tensor:  # (..., r) float32
    """The numbers that the codes stand for.

    Args:
        codes: From `log_quantize`.
        scales: The same.
        signed: As it was there.
        block: The same.

    Example:
        >>> codes, scales = log_quantize(torch.tensor([[1.0, 0.25]]), signed=False)
        >>> log_dequantize(codes, scales, signed=False)
        tensor([[1.0000, 0.2500]])
    """
    values = _table(signed, codes.device)[codes.int()]
    size = min(block, max(codes.shape[-1], 1))
    cut = pad(values, (0, -codes.shape[-1] % size)).unflatten(-1, (-1, size))
    return (cut * scales.unsqueeze(-1)).flatten(-2)[..., : codes.shape[-1]]


def _table(signed: bool, device: torch.device) -> Tensor:  # (256,)
    codes = torch.arange(256, device=device)
    top = 127 if signed else 255
    level = codes & 127 if signed else codes
    value = torch.where(level > 0, torch.exp2((level - top) / STEPS), 0.0)
    return torch.where(codes > 127, -value, value) if signed else value
