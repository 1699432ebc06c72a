"""Adafactor (1804.04235): the second moment as a row times a column, the update clipped at a root mean square of 1.

    row ← β̂ row + (1−β̂) mean_j(R² + ε),  column ← β̂ column + (1−β̂) mean_i(R² + ε),  β̂ = 1 − t^−0.8
    U = R / √(row columnᵀ / mean(row)),  U ← U / max(1, RMS(U)),  m ← β₁ m + (1−β₁) U,  D = m

Where rows are shared out, the r + 1 sums over rows of all matrices travel in one message, and the RMS in another.
Paper: momentum is kept, as β₁ of the group says; parameter scaling and the relative step are left to the caller's rate.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from eckart.optim.inner.inner import Moments
from eckart.optim.sharding import together
from eckart.optim.step.slot import Slot

EPS = 1e-30  # the paper's ε₁


def adafactor(slots: Sequence[Slot], moments: Sequence[Moments]) -> list[Tensor]:
    over, rows = [slot.shards.rows for slot in slots], [slot.shape[slot.left] for slot in slots]  # p of all processes
    sums = together(over, [_sums(slot, each) for slot, each in zip(slots, moments, strict=True)])
    updates = [_scaled(*each) for each in zip(slots, moments, sums, rows, strict=True)]
    squares = together(over, [U.square().sum((-2, -1), keepdim=True) for U in updates])
    for slot, each, U, square, p in zip(slots, moments, updates, squares, rows, strict=True):
        clipped = U / (square / (p * slot.rank)).sqrt().clamp(min=1.0)
        each["exp_avg"].lerp_(clipped, 1 - slot.group["betas"][0])
    return [each["exp_avg"].clone() for each in moments]


def _sums(slot: Slot, moments: Moments) -> Tensor:  # (..., 1, r + 1)
    """Sums over the rows that are here: of squares, and of `row`, which moves on."""
    squares = slot.R.square().add_(EPS)
    row = moments["row"].lerp_(squares.mean(-1, keepdim=True), fresh(slot))
    return torch.cat([squares.sum(-2, keepdim=True), row.sum(-2, keepdim=True)], -1)


def _scaled(slot: Slot, moments: Moments, sums: Tensor, rows: int) -> Tensor:  # (..., p, r)
    """U before it is clipped."""
    column = moments["column"].lerp_(sums[..., :-1] / rows, fresh(slot))
    return slot.R * (moments["row"] / (sums[..., -1:] / rows)).rsqrt() * column.rsqrt()


def fresh(slot: Slot) -> float:
    """1 − β̂."""
    return float(int(slot.state["since"]) ** -0.8)
