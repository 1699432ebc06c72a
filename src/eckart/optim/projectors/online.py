"""A basis that is trained beside the weights: online PCA by Adam (online subspace descent, 2408.12857).

    L(V) = ‖Ĝ − Ĝ V Vᵀ‖²,  Ĝ = X / ‖X‖,   ∇L = −4 Y + 2 Y VᵀV + 2 V VᵀY,  Y = Ĝᵀ Ĝ V
    V ← V − η_V Adam(∇L),                   η_V = `basis_lr` × lr / lr at the start of its schedule

A step goes down and up by V and moves V afterwards, so R = X V is there already: one more product Xᵀ R. V is not
orthonormal, only drawn to it by L. The moments of V are its own (β .9, .999), 2 q r more numbers.

Cost: 2 p q r more a step than GaLore's. Where rows are shared out, (q + 1) r numbers travel at each step.
Paper: the first V is three rounds of power and not an SVD; the penalty on VᵀV − I is left out, as in its code; V has no
weight decay. Its code's η_V is 1/200 (the row's), its text suggests 5 η, which suits small matrices and short runs: a
step of Adam's turns V by about η_V √q. A zero gradient moves nothing. The first step, at whose gradient V is nearly
stationary, does not either.
"""

import torch
from torch import Tensor

from eckart.optim.step.slot import Slot

BETAS = (0.9, 0.999)
EPS = 1e-8
STATE = {"basis_avg": "basis", "basis_avg_sq": "basis", "basis_moves": "count"}


def descend(slot: Slot, D: Tensor) -> None:
    """Move the kept basis; `slot.V` stays what the step began with."""
    if int(slot.state["step"]) == int(slot.state["basis_step"]):
        return
    V = slot.V.clone()
    Y = slot.X.mT @ slot.R
    square = slot.X.square().sum((-2, -1), keepdim=True).expand(*Y.shape[:-2], 1, Y.shape[-1])
    Y, square = slot.shards.sum(torch.cat([Y, square], -2)).split([Y.shape[-2], 1], -2)
    Y = Y / torch.where(square > 0, square, 1.0)
    slope = 2 * (Y @ (V.mT @ V) + V @ (V.mT @ Y)) - 4 * Y
    moves = (square[..., :1, :1] > 0).to(V.dtype)
    slot.V.sub_(_adam(slot, slope, moves) * _rate(slot))
    slot.V = V


def _adam(slot: Slot, slope: Tensor, moves: Tensor) -> Tensor:
    """Adam's direction where `moves` is 1; nothing, and no change of moments, where it is 0. No host read."""
    m, v, count = (slot.get(key) for key in STATE)
    count += moves
    m.lerp_(slope, moves * (1 - BETAS[0]))
    v.lerp_(slope.square(), moves * (1 - BETAS[1]))
    first, second = 1 - BETAS[0] ** count, 1 - BETAS[1] ** count
    return moves * (m / first.clamp(min=EPS)) / ((v / second.clamp(min=EPS)).sqrt() + EPS)


def _rate(slot: Slot) -> float:
    rate = float(slot.group["lr"])
    start = float(slot.group.get("initial_lr", rate))
    return float(slot.group["basis_lr"]) * (rate / start if start else 1.0)
