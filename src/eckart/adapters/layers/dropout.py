"""Dropout that is computed again instead of kept: whether an entry falls is a hash of its position and a seed.

The mask of a (T, n) input costs a few integer operations per entry and no memory between forward and backward; a
torch.Generator inside an autograd.Function would break compiled graphs and could not be wound back.

    falls(t, j)  where  hash32(seed + t·n + j) < p·2³²

with Wellons' lowbias32 as hash32 (public domain), in 32-bit arithmetic that wraps. Its last step is left out: it only
changes low bits, and the comparison looks at the high ones.
Paper: none.
"""

import torch
from torch import Tensor


def draw_seed(device: torch.device) -> Tensor:  # (1,) int32
    """A fresh seed from torch's own random state, left on the device: no synchronisation, and checkpoints replay it."""
    return torch.randint(-(2**31), 2**31 - 1, (1,), device=device, dtype=torch.int32)


def fallen(shape: tuple[int, ...], rate: float, seed: Tensor) -> Tensor:  # (T, n) bool
    """Which entries are dropped, each with probability `rate`; decided by the seed alone."""
    count = 1
    for size in shape:
        count *= size
    h = torch.arange(count, device=seed.device, dtype=torch.int32).add_(seed)
    h.bitwise_xor_((h >> 16).bitwise_and_(0xFFFF)).mul_(0x7FEB352D)
    h.bitwise_xor_((h >> 15).bitwise_and_(0x1FFFF)).mul_(0x846CA68B - 2**32)
    return (h < int(rate * 2**32) - 2**31).view(shape)
