"""The warm basis: one step of subspace iteration from the last one, orth(Bᵀ (B V)) (PowerSGD, 1905.13727).

    power            B = X
    momentum-power   B = ρ m̂ Vᵀ + (1−ρ) X with ρ = β₁ and m̂ the bias-corrected first moment (LDAdam, 2410.16103)

The second B is never formed: VᵀV = I, so B V = ρ m̂ + (1−ρ) X V and Bᵀ Z = ρ V (m̂ᵀ Z) + (1−ρ) Xᵀ Z.

Cost: 4 p q r a refresh, and an orthonormalisation of (q, r). Where rows of X are shared out, q·r travels once.
Paper: GaLore and LDAdam start from an SVD; a cold start here is three rounds from random columns.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from eckart.linalg.orthonormal import fast_orthonormal
from eckart.optim.step.slot import Slot

ROUNDS = 3


def first_power(slot: Slot) -> Tensor:
    V = slot.V
    for _ in range(ROUNDS):
        V = _step(slot, slot.X @ V, lambda Z: slot.X.mT @ Z, V)
    return V


def power(slot: Slot) -> Tensor:
    return _step(slot, slot.X @ slot.V, lambda Z: slot.X.mT @ Z, slot.V)


def momentum_power(slot: Slot) -> Tensor:
    rho = slot.group["betas"][0]
    steps = max(int(slot.state["since"]), 1)  # before this one
    mean = slot.moments["exp_avg"] * (rho / (1 - rho**steps))
    V, rest = slot.V, 1 - rho
    Z = torch.add(mean, slot.X @ V, alpha=rest)
    return _step(slot, Z, lambda Z: torch.add(V @ (mean.mT @ Z), slot.X.mT @ Z, alpha=rest), V)


def _step(slot: Slot, Z: Tensor, back: Callable[[Tensor], Tensor], V: Tensor) -> Tensor:  # (..., q, r)
    """orth(Bᵀ Z) of Z = B V; V itself where that is zero."""
    assert slot.peak is not None
    Y = slot.shards.sum(back(Z.div_(torch.where(slot.peak > 0, slot.peak, 1.0))))
    alive = Y.abs().amax((-2, -1), keepdim=True) > 0
    return torch.where(alive, fast_orthonormal(Y), V)
