"""Adafactor of the whole gradient, whose momentum is kept in the sketch (Flora 2402.03293; Adafactor 1804.04235).

    row ← β̂ row + (1−β̂) mean_j X²,  column ← β̂ column + (1−β̂) mean_i X²,  β̂ = 1 − t^−0.8
    U = X / √(row columnᵀ / mean(row)) = a ∘ X ∘ b,   m ← β₁ m + (1−β₁) U V,   D = m

U is never formed: U V = a ∘ (X (bᵀ ∘ V)). Flora's clipping of the update at a root mean square of 1 is the limiter.
Cost: another projection, 2 p q r, and two passes over X. Where rows are shared out, q + 2 numbers travel at each step.

Paper: its code adds (1−β₁) U to β₁ m Vᵀ whole, where its equations and we see the last gradient through the sketch too;
it multiplies the rate by the root mean square of W, which is left to the caller's rate.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from eckart.optim.inner.adafactor import EPS, fresh
from eckart.optim.inner.inner import Moments
from eckart.optim.sharding import together
from eckart.optim.step.slot import Slot


def sketched_adafactor(slots: Sequence[Slot], moments: Sequence[Moments]) -> list[Tensor]:
    parts = [_sums(slot, each["row"]) for slot, each in zip(slots, moments, strict=True)]
    sums = together([slot.shards.rows for slot in slots], parts)
    return [_one(slot, each, total) for slot, each, total in zip(slots, moments, sums, strict=True)]


def _sums(slot: Slot, row: Tensor) -> Tensor:  # (..., 1, q + 2)
    """Σ_i X², Σ_i row and how many rows there are; `row` is moved on."""
    X = slot.X
    row.lerp_(_squares(X, -1) / X.shape[-1] + EPS, fresh(slot))
    rows = X.new_full((*X.shape[:-2], 1, 1), X.shape[-2])
    return torch.cat([_squares(X, -2), row.sum(-2, keepdim=True), rows], -1)


def _one(slot: Slot, moments: Moments, sums: Tensor) -> Tensor:
    row, column = moments["row"], moments["column"]
    squares, of_row, rows = sums.split([column.shape[-1], 1, 1], -1)
    column.lerp_(squares / rows + EPS, fresh(slot))
    seen = slot.X @ (slot.V * column.rsqrt().mT)
    return moments["exp_avg"].lerp_(seen * (row * rows / of_row).rsqrt(), 1 - slot.group["betas"][0]).clone()


def _squares(X: Tensor, dim: int) -> Tensor:
    return torch.linalg.vector_norm(X, dim=dim, keepdim=True).square()
