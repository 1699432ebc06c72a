"""Starts that look at nothing: B = 0 and A random, so that Δ = 0 and the first step moves B alone.

    kaiming      A uniform in ±1/√n (an embedding's: N(0, 1))
    gaussian     A from N(0, 1/r²)
    orthogonal   A with r orthonormal rows, as EVA's but in random directions

Paper: LoRA 2106.09685, whose code is kaiming_uniform with a = √5; its text says Gaussian, and PEFT has that of std 1/r.
PEFT's own orthogonal start fills B and A with rows of one orthogonal r×r matrix, for even r; ours is another.
"""

import torch
from torch import Tensor

from eckart.adapters.shapes.two_factor import TwoFactor
from eckart.adapters.starts.start import Look
from eckart.linalg import orthonormalize


def kaiming(adapter: TwoFactor, look: Look) -> None:
    """A uniform in ±1/√n (an embedding's: standard normal), B zero."""
    n = adapter.shape[1]
    A = torch.empty(adapter.A.shape, dtype=torch.float32)
    if adapter.kind == "embedding":
        A.normal_(generator=look.generator)
    else:
        A.uniform_(-(n**-0.5), n**-0.5, generator=look.generator)
    _set(adapter, A)


def gaussian(adapter: TwoFactor, look: Look) -> None:
    """A from N(0, 1/r²), B zero."""
    _set(adapter, torch.randn(adapter.A.shape, generator=look.generator) / adapter.rank)


def orthogonal(adapter: TwoFactor, look: Look) -> None:
    """A with random orthonormal rows, B zero."""
    _set(adapter, orthonormalize(torch.randn(adapter.A.mT.shape, generator=look.generator)).mT)


def _set(adapter: TwoFactor, A: Tensor) -> None:
    adapter.A.copy_(A)
    adapter.B.zero_()
