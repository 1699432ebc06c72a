"""Starts that look at nothing: B = 0 and A random, so that Δ = 0 and the first step moves B alone.

Paper: LoRA 2106.09685, whose code draws A uniform in ±1/√n (kaiming_uniform with a = √5); an embedding's is N(0, 1).
"""

import torch

from eckart.adapters.shapes.two_factor import TwoFactor
from eckart.adapters.starts.start import Look


def kaiming(adapter: TwoFactor, look: Look) -> None:
    """A uniform in ±1/√n (an embedding's: standard normal), B zero."""
    n = adapter.shape[1]
    A = torch.empty(adapter.A.shape, dtype=torch.float32)
    if adapter.kind == "embedding":
        A.normal_(generator=look.generator)
    else:
        A.uniform_(-(n**-0.5), n**-0.5, generator=look.generator)
    adapter.A.copy_(A)
    adapter.B.zero_()
