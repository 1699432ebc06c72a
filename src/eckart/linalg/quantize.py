"""Blockwise symmetric quantisation to 8 or 4 bits, and stochastic rounding to bfloat16.

The entries of x, row by row, are cut into blocks of `block`; each block keeps a float32 scale s = max|x| / L and the
integers q = round(x/s) in [−L, L], L = 127 or 7 (Dettmers et al., arXiv 2110.02861, blockwise; linear codes as in
Q-GaLore, arXiv 2407.08296). Symmetric: 0 stays 0, −x gives −q. Two 4-bit integers share a byte, q + 8 each, the earlier
in the low half. The error is at most s/2 per entry to nearest. Stochastic rounding takes ⌊x/s⌋ + 1 with probability
x/s − ⌊x/s⌋: its mean is x, its error below s. Bytes: numel·bits/8, rounded up, + 4 per block. Cost O(numel).
Paper: Dettmers' codes are non-linear, ours are linear; scales are float32 (half a bit per entry at block 64), since a
half-precision scale would add an error of its own to all entries of its block and underflow on optimizer states.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from eckart.linalg._check import require_count, require_finite, seeded

_LEVELS = {8: 127, 4: 7}


class Quantized(NamedTuple):
    """A tensor in blocks of small integers: what quantize returns and dequantize reads."""

    codes: Tensor  # bits 8: int8 (numel,); bits 4: uint8 (⌈numel/2⌉,)
    scales: Tensor  # (blocks,) float32
    shape: tuple[int, ...]
    bits: int
    block: int

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scales.nbytes


def quantize(
    x: Tensor,  # any shape
    bits: int = 8,
    *,
    block: int = 64,
    stochastic: bool = False,
    generator: torch.Generator | None = None,
) -> Quantized:
    """Quantise a tensor in blocks of consecutive entries, each with its own scale.

    Args:
        x: Floating-point tensor of any shape; arithmetic is float32.
        bits: 8 or 4.
        block: Entries per scale, at least 1; the last block may be shorter.
        stochastic: Round at random so that the mean over roundings is x, instead of to the nearest.
        generator: For stochastic rounding. None: the same fixed seed at each call, so hand one in where errors of
            successive calls must be independent.

    Returns:
        Quantized codes, on x's device.

    Raises:
        ValueError: bits is neither 8 nor 4, block is below 1, or x is not finite (in float32).

    Example:
        >>> q = quantize(torch.tensor([0.0, 1.0, -2.0, 7.0, 3.4]), bits=4)
        >>> dequantize(q), q.nbytes
        (tensor([ 0.,  1., -2.,  7.,  3.]), 7)
    """
    if bits not in _LEVELS:
        raise ValueError(f"bits must be 8 or 4, got {bits}")
    require_count("block", block, low=1)
    if not x.is_floating_point():
        raise TypeError(f"x must be real floating point, got {x.dtype} of shape {tuple(x.shape)}; use x.float()")
    rows = _blocks(x.detach().float().flatten(), block)
    require_finite("x, in float32 and in blocks,", rows)
    level = _LEVELS[bits]
    scales = rows.abs().amax(-1) / level
    steps = rows / torch.where(scales > 0, scales, torch.ones_like(scales)).unsqueeze(-1)
    codes = _round(steps, stochastic, generator).clamp_(-level, level).to(torch.int8).flatten()[: x.numel()]
    return Quantized(_pack(codes) if bits == 4 else codes, scales, tuple(x.shape), bits, block)


def dequantize(q: Quantized, dtype: torch.dtype = torch.float32) -> Tensor:
    """The tensor that the codes stand for.

    Args:
        q: What quantize returned.
        dtype: Of the result.

    Returns:
        Tensor of q.shape: each code times its block's scale.

    Example:
        >>> dequantize(quantize(torch.tensor([[0.5, -1.0], [0.0, 0.25]])), torch.bfloat16)
        tensor([[ 0.5039, -1.0000],
                [ 0.0000,  0.2520]], dtype=torch.bfloat16)
    """
    numel = math.prod(q.shape)
    codes = _unpack(q.codes)[:numel] if q.bits == 4 else q.codes
    values = _blocks(codes.float(), q.block) * q.scales.unsqueeze(-1)
    return values.flatten()[:numel].reshape(q.shape).to(dtype)


def stochastic_round(
    x: Tensor,  # any shape, float32
    dtype: torch.dtype = torch.bfloat16,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:  # same shape, bfloat16
    """Round float32 to one of its two bfloat16 neighbours at random, so that the mean is x.

    bfloat16 is the upper half of float32: 16 random bits are added to the magnitude and the lower half is cut off.

    Args:
        x: float32 tensor; values that bfloat16 holds stay exactly, infinities and NaN too.
        dtype: torch.bfloat16.
        generator: Source of the bits. None: the same fixed seed at each call, so hand one in where errors of
            successive calls must be independent.

    Returns:
        bfloat16 tensor. Beyond the largest bfloat16 (3.39e38) a finite value gives that value, never infinity.

    Raises:
        TypeError: x is not float32 or dtype not bfloat16.

    Example:
        >>> x = torch.full((10000,), 1.002)  # between 1 and 1.0078125
        >>> rounded = stochastic_round(x).float()
        >>> sorted(set(rounded.tolist())), round(float(rounded.mean()), 3)
        ([1.0, 1.0078125], 1.002)
    """
    if x.dtype != torch.float32 or dtype != torch.bfloat16:
        raise TypeError(f"stochastic_round goes from torch.float32 to torch.bfloat16, got {x.dtype} to {dtype}")
    noise = torch.randint(
        0, 1 << 16, x.shape, dtype=torch.int32, device=x.device, generator=seeded(x.device, generator)
    )
    bits = noise.add_(x.detach().contiguous().view(torch.int32))  # sign and magnitude: both signs round away from 0
    cut = bits.bitwise_and_(-(1 << 16)).view(torch.float32)
    largest = torch.finfo(torch.bfloat16).max
    return torch.where(torch.isfinite(x), cut.clamp_(-largest, largest).to(torch.bfloat16), x.to(torch.bfloat16))


def _blocks(flat: Tensor, block: int) -> Tensor:  # (numel,) -> (⌈numel/block⌉, block), the end padded with 0
    return pad(flat, (0, -len(flat) % block)).view(-1, block)


def _round(steps: Tensor, stochastic: bool, generator: torch.Generator | None) -> Tensor:
    if not stochastic:
        return steps.round()
    below = steps.floor()
    chance = torch.rand(steps.shape, device=steps.device, generator=seeded(steps.device, generator))
    return below + (chance < steps - below)


def _pack(codes: Tensor) -> Tensor:  # int8 (numel,) in −7…7 -> uint8 (⌈numel/2⌉,)
    low, high = (pad(codes, (0, len(codes) % 2)) + 8).to(torch.uint8).view(-1, 2).unbind(-1)
    return low | (high << 4)


def _unpack(packed: Tensor) -> Tensor:  # uint8 (bytes,) -> int8 (2·bytes,)
    return torch.stack((packed & 15, packed >> 4), -1).flatten().to(torch.int8) - 8
