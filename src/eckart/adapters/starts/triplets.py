"""AdaLoRA's start: P and Q from N(0, 0.02²), Λ = 0, so that Δ = 0 and the first step moves Λ alone.

Paper: 2303.10512, whose code draws so; none.
"""

import torch

from eckart.adapters.shapes.triplets import Triplets
from eckart.adapters.starts.start import Look

DEVIATION = 0.02


def gaussian(adapter: Triplets, look: Look) -> None:
    """P and Q normal, Λ zero."""
    for factor in (adapter.P, adapter.Q):
        drawn = torch.empty(factor.shape, dtype=torch.float32)
        factor.copy_(drawn.normal_(std=DEVIATION, generator=look.generator))
    adapter.Lambda.zero_()
