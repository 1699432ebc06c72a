"""Eight bits for numbers of many sizes: a sign and a logarithm, for the moments of an optimizer.

Each block of `block` entries along the last dimension keeps its largest magnitude as a float32 scale; an entry's code
is its level k, a magnitude of scale · 2^((k − K)/8), and 0 for zero: K = 127 levels and a sign, or K = 255 for what is
never negative. Neighbouring levels lie 9 % apart, 15.75 or 31.75 octaves below the scale are covered. Rounding is
stochastic, of mean x: a moving average that changes by 0.1 % a step would never move if it went to the nearest level.
What is never negative does not become 0 unless it is 0, so that nothing is divided by a moment that was lost.

Paper: Dettmers et al. (2110.02861) use a table of dynamic codes and the nearest; ours is computed and stochastic.
"""

import math

import torch
from torch import Tensor

from eckart.linalg._check import seeded

STEPS = 8  # levels for each octave


def log_quantize(
    x: Tensor,  # (..., r)
    *,
    signed: bool = True,
    block: int = 64,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:  # (..., r) uint8, (..., r / block) float32
    """Round a tensor to 8-bit logarithmic codes.

    Args:
        x: Floating-point; finite (not checked: no host read).
        signed: Whether x has signs; else it must not be negative.
        block: Entries that share a scale; r is a multiple of it.
        generator: Source of the rounding, on x's device; None gives the same at every call.

    Returns:
        codes, in x's shape, and scales.

    Raises:
        ValueError: r is not a multiple of the block.

    Example:
        >>> codes, scales = log_quantize(torch.tensor([[4.0, -2.0, 0.0, 1.0]]), block=4)
        >>> log_dequantize(codes, scales)
        tensor([[ 4., -2.,  0.,  1.]])
    """
    if x.shape[-1] % block:
        raise ValueError(f"block: {block} does not divide the last dimension of x {tuple(x.shape)}")
    top = 127 if signed else 255
    cut = x.detach().float().unflatten(-1, (-1, block))
    scales = cut.abs().amax(-1)
    share = cut.abs() / torch.where(scales > 0, scales, 1.0).unsqueeze(-1)
    position = top + STEPS * share.log2()  # −∞ for 0
    low = position.floor().clamp(0, top)
    ratio = share / torch.exp2((low - top) / STEPS)  # from 1 to 2^(1/8) where low ≥ 1
    chance = torch.where(low >= 1, (ratio - 1) / (2 ** (1 / STEPS) - 1), ratio / 2 ** (1 / STEPS))
    draw = torch.rand(cut.shape, generator=seeded(x.device, generator), device=x.device)
    level = (low + (draw < chance)).clamp(0 if signed else 1, top)
    level = torch.where(share > 0, level, 0.0).to(torch.uint8)
    if signed:
        level = level | (cut.signbit().to(torch.uint8) << 7)
    return level.flatten(-2), scales


def log_dequantize(
    codes: Tensor,  # (..., r) uint8
    scales: Tensor,  # (..., r / block)
    *,
    signed: bool = True,
) -> Tensor:  # (..., r) float32
    """The numbers that the codes stand for.

    Args:
        codes: From `log_quantize`.
        scales: The same.
        signed: As it was there.

    Example:
        >>> codes, scales = log_quantize(torch.tensor([[1.0, 0.25]]), signed=False, block=2)
        >>> log_dequantize(codes, scales, signed=False)
        tensor([[1.0000, 0.2500]])
    """
    table = _table(signed, codes.device)
    cut = table[codes.int()].unflatten(-1, (scales.shape[-1], -1)) if codes.shape[-1] else table[codes.int()]
    return (cut * scales.unsqueeze(-1)).flatten(-2)


def _table(signed: bool, device: torch.device) -> Tensor:  # (256,)
    codes = torch.arange(256, device=device)
    top = 127 if signed else 255
    level = codes & 127 if signed else codes
    value = torch.where(level > 0, torch.exp2((level - top) / STEPS), 0.0)
    return torch.where(codes > 127, -value, value) if signed else value


def block_of(r: int, most: int = 64) -> int:
    """The largest block up to `most` that divides r.

    Example:
        >>> block_of(128), block_of(48), block_of(7)
        (64, 48, 7)
    """
    return next(size for size in range(min(most, r), 0, -1) if math.remainder(r, size) == 0)
