"""Bases that are drawn and do not look at the gradient; the same in each process and after a resume, from the seed."""

import torch
from torch import Tensor

from eckart.linalg import orthonormalize
from eckart.optim.step.slot import Slot


def random(slot: Slot) -> Tensor:  # (..., q, r)
    """Entries N(0, 1/r): VVᵀ is I on average (Johnson and Lindenstrauss)."""
    return slot.noise() / slot.rank**0.5


def orthonormal(slot: Slot) -> Tensor:  # (..., q, r)
    """Uniform among all orthonormal bases."""
    return orthonormalize(slot.noise())


def coordinates(slot: Slot) -> Tensor:  # (r,) integers
    """r of the q columns, the same for a whole stack."""
    return torch.randperm(slot.X.shape[-1], generator=slot.generator(), device=slot.X.device)[: slot.rank].sort().values
