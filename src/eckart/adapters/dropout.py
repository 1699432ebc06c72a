"""Dropout that is computed again instead of kept: whether an entry falls is a hash of its position and a seed.

The mask of a (T, n) input costs a few integer operations per entry and no memory between forward and backward; a
torch.Generator inside an autograd.Function would break compiled graphs and could not be wound back.

    keep(t, j) = hash32(seed + t·n + j) ≥ p·2³²

with the finaliser of MurmurHash3 (Appleby, public domain) as hash32.
Paper: none.
"""

import torch
from torch import Tensor


def draw_seed(device: torch.device) -> Tensor:  # (1,) int64
    """A fresh seed from torch's own random state, left on the device: no synchronisation, and checkpoints replay it."""
    return torch.randint(0, 2**31 - 1, (1,), device=device)


def drop(x: Tensor, rate: float, seed: Tensor) -> Tensor:  # (T, n) -> (T, n)
    """x with each entry zero with probability `rate`, the others times 1/(1 − rate); decided by the seed alone."""
    return x * _kept(x, rate, seed)


def _kept(x: Tensor, rate: float, seed: Tensor) -> Tensor:
    """0 or 1/(1 − rate) for each entry, in x's dtype."""
    h = torch.arange(x.numel(), device=x.device).view(x.shape).add_(seed * 0x9E3779B1).bitwise_and_(0xFFFFFFFF)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = h.bitwise_xor_(h >> shift).mul_(factor).bitwise_and_(0xFFFFFFFF)
    h = h.bitwise_xor_(h >> 16)
    return (h >= int(rate * 2**32)).to(x.dtype).mul_(1 / (1 - rate))
