"""Adafactor (1804.04235): the second moment as a row times a column, the update clipped at a root mean square of 1.

    row ← β̂ row + (1−β̂) mean_j(R² + ε),  column ← β̂ column + (1−β̂) mean_i(R² + ε),  β̂ = 1 − t^−0.8
    U = R / √(row columnᵀ / mean(row)),  U ← U / max(1, RMS(U)),  m ← β₁ m + (1−β₁) U,  D = m

Paper: momentum is kept, as β₁ of the group says; parameter scaling and the relative step are left to the caller's rate.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from eckart.optim.inner.inner import Moments
from eckart.optim.slot import Slot

EPS = 1e-30  # the paper's ε₁


def adafactor(slots: Sequence[Slot], moments: Sequence[Moments]) -> list[Tensor]:
    return [_one(slot, each) for slot, each in zip(slots, moments, strict=True)]


def _one(slot: Slot, moments: Moments) -> Tensor:
    R, row, column = slot.R, moments["row"], moments["column"]
    fresh = int(slot.state["since"]) ** -0.8
    squares = R.square().add_(EPS)
    sums = torch.cat([squares.sum(-2, keepdim=True), torch.ones_like(R[..., :1, :1]) * R.shape[-2]], -1)
    sums = slot.shards.sum(sums)  # columns' sums, and how many rows there are in all
    rows = sums[..., -1:]
    row.lerp_(squares.mean(-1, keepdim=True), fresh)
    column.lerp_(sums[..., :-1] / rows, fresh)
    mean = slot.shards.sum(row.sum(-2, keepdim=True)) / rows
    U = R * (row / mean).rsqrt() * column.rsqrt()
    square = slot.shards.sum(U.square().sum((-2, -1), keepdim=True)) / (rows * R.shape[-1])
    U = U / square.sqrt().clamp(min=1.0)
    moments["exp_avg"].lerp_(U, 1 - slot.group["betas"][0])
    return moments["exp_avg"].clone()
