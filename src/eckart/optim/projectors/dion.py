"""A power step on the momentum, both of whose factors are the update (Dion, 2504.05295).

    M ← M + X,  P = orth(M V),  F = Mᵀ P,  M ← M − (1−μ) P Fᵀ,  V ← F with columns of length 1
    W ← W − η √(m/n) P Vᵀ

M (p, q) is the gradient plus what earlier steps left over, so it goes by the name `error`; P is the inner rule
`orthonormal`'s D; μ is the first of `betas`. It saves what processes send, not memory: the state is m n + n r.

Cost: 6 p q r a step. Where rows are shared out, p·r and q·r travel at each step.
Paper: none for the side `right`. Where M has a rank below r, columns of F that are roundings (below 1e-6 of the
longest) move nothing and keep their V; the paper's are noise blown up to length 1.
"""

import torch
from torch import Tensor

from eckart.optim.step.slot import Slot

ROUNDING = 1e-6
STATE = {"error": "gradient"}


def start(slot: Slot) -> Tensor:
    """The random columns that the state began with."""
    return slot.V


def factors(slot: Slot, D: Tensor) -> None:
    """Take the step off the momentum, keep the next V, and leave √(m/n) V for the way up."""
    F = slot.shards.sum(slot.X.mT @ D)
    slot.get("error").copy_(torch.sub(slot.X, D @ F.mT, alpha=1 - slot.group["betas"][0]))
    length = torch.linalg.vector_norm(F, dim=-2, keepdim=True)
    alive = length > ROUNDING * length.amax(-1, keepdim=True)
    unit = F / torch.where(alive, length, 1.0)
    slot.V.copy_(torch.where(alive, unit, slot.V))
    m, n = slot.shape
    slot.V = torch.where(alive, unit, 0.0) * (m / n) ** 0.5
