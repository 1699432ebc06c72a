"""Bases that are drawn and do not look at the gradient; the same in each process and after a resume, from the seed."""

import torch
from torch import Tensor

from eckart.linalg import orthonormalize
from eckart.optim.slot import Slot


def random(slot: Slot) -> Tensor:  # (..., q, r)
    """Entries N(0, 1/r): VVᵀ is I on average (Johnson and Lindenstrauss)."""
    return _gaussian(slot) / slot.rank**0.5


def orthonormal(slot: Slot) -> Tensor:  # (..., q, r)
    """Uniform among all orthonormal bases."""
    return orthonormalize(_gaussian(slot))


def coordinates(slot: Slot) -> Tensor:  # (r,) integers
    """r of the q columns, the same for a whole stack."""
    return torch.randperm(slot.X.shape[-1], generator=slot.generator(), device=slot.X.device)[: slot.rank].sort().values


def _gaussian(slot: Slot) -> Tensor:
    shape = *slot.X.shape[:-2], slot.X.shape[-1], slot.rank
    return torch.randn(shape, generator=slot.generator(), device=slot.X.device, dtype=slot.X.dtype)
