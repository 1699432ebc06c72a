"""Eight bits for numbers of many sizes, the moments of an optimizer: a small float, with a scale for each block.

Each block of `block` entries along the last dimension keeps its largest magnitude as a float32 scale. A code is a sign,
4 bits of exponent and 3 of mantissa; of what is never negative, 5 bits of exponent and 3 of mantissa. Its largest
magnitude is the scale; neighbours lie 6 to 12 % apart over 15 or 31 octaves, and evenly below (gradual underflow).
That is the upper part of a float32 whose exponent was moved, so that coding is an addition and a shift.

Rounding is stochastic, of mean x: a moving average that changes by 0.1 % a step would never move if it went to the
nearest. What is never negative does not become 0 unless it is 0, so that nothing is divided by a moment that was lost.
One rounding errs by 3.7 % in the root mean square. Over many steps v ← β v + (1−β) g² leaves its code with a chance of
its change over the distance to the next, so that errors don't pile up as 1/(1−β) of them would: the relative variance
of v is about half the distance times E|g² − v| / v, whatever β is (21 % of v for normal g, so 10 % of √v).

Bytes: 1 for an entry, 4 for a block. Cost O(numel).
Paper: Dettmers et al. (2110.02861) use a table of dynamic codes and the nearest; ours is computed and stochastic.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from eckart.linalg._check import require_count, seeded

SHIFT = 20  # bits of a float32's mantissa that are left out
SIGN = 7  # the bit that holds it
TOP = {True: 1.875 * 2.0**-112, False: 1.875 * 2.0**-96}  # the float32 whose upper part is 127, or 255


def to_minifloat(
    x: Tensor,  # (..., r)
    *,
    signed: bool = True,
    block: int = 64,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:  # (..., r) uint8, (..., ⌈r / block⌉) float32
    """Round a tensor at random to floats of 8 bits.

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
        >>> codes, scales = to_minifloat(torch.tensor([[7.5, -4.0, 0.0, 1.0, 0.5]]), block=4)
        >>> from_minifloat(codes, scales, block=4), scales
        (tensor([[ 7.5000, -4.0000,  0.0000,  1.0000,  0.5000]]), tensor([[7.5000, 0.5000]]))
    """
    require_count("block", block, low=1)
    cut = _blocks(x.detach().float(), block)
    scales = cut.abs().amax(-1)
    share = cut / torch.where(scales > 0, scales, 1.0).unsqueeze(-1)
    noise = torch.randint(
        0, 1 << SHIFT, cut.shape, dtype=torch.int32, device=x.device, generator=seeded(x.device, generator)
    )
    codes = (share.abs() * TOP[signed]).view(torch.int32).add_(noise) >> SHIFT
    if signed:
        codes |= torch.signbit(cut).int() << SIGN
    else:
        codes = torch.where(share > 0, codes.clamp_(min=1), 0)
    return codes.to(torch.uint8).flatten(-2)[..., : x.shape[-1]].contiguous(), scales


def from_minifloat(
    codes: Tensor,  # (..., r) uint8
    scales: Tensor,  # (..., ⌈r / block⌉)
    *,
    signed: bool = True,
    block: int = 64,
) -> Tensor:  # (..., r) float32
    """The numbers that the codes stand for.

    Args:
        codes: From `to_minifloat`.
        scales: The same.
        signed: As it was there.
        block: The same.

    Example:
        >>> codes, scales = to_minifloat(torch.tensor([[1.5, 0.2]]), signed=False)
        >>> from_minifloat(codes, scales, signed=False)
        tensor([[1.5000, 0.2000]])
    """
    bits = codes.int()
    bits = (bits << SHIFT) & 0x07FFFFFF | (bits >> SIGN << 31) if signed else bits << SHIFT
    cut = _blocks(bits.view(torch.float32) * (1 / TOP[signed]), block)
    return (cut * scales.unsqueeze(-1)).flatten(-2)[..., : codes.shape[-1]]


def _blocks(t: Tensor, block: int) -> Tensor:  # (..., r) -> (..., ⌈r/block⌉, block), the end padded with 0
    size = min(block, max(t.shape[-1], 1))
    return pad(t, (0, -t.shape[-1] % size)).unflatten(-1, (-1, size))
