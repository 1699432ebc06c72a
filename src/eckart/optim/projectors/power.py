"""The warm basis: one step of subspace iteration from the last one, orth(Xᵀ (X V)) (PowerSGD, 1905.13727).

Cost: 4 p q r a refresh, and an orthonormalisation of (q, r). Where rows of X are shared out, q·r travels once.
Paper: GaLore's takes an SVD; a cold start here is three rounds from random columns.
"""

import torch
from torch import Tensor

from eckart.linalg.orthonormal import fast_orthonormal
from eckart.optim.slot import Slot

ROUNDS = 3


def first_power(slot: Slot) -> Tensor:
    V = slot.V
    for _ in range(ROUNDS):
        V = step(slot, slot.X, V)
    return V


def power(slot: Slot) -> Tensor:
    return step(slot, slot.X, slot.V)


def step(slot: Slot, X: Tensor, V: Tensor) -> Tensor:  # (..., q, r)
    """orth(Xᵀ X V); V itself where X V is zero."""
    Z = X @ V
    peak = slot.shards.max(Z.abs().amax((-2, -1), keepdim=True) if Z.shape[-2] else Z.new_zeros(*Z.shape[:-2], 1, 1))
    Y = slot.shards.sum(X.mT @ (Z / torch.where(peak > 0, peak, 1.0)))
    return torch.where(peak > 0, fast_orthonormal(torch.where(peak > 0, Y, V)), V)
