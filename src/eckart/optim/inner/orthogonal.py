"""The polar factor of the momentum: all its singular values become 1 (SUMO 2505.24749, Muon).

    M ← β M + G,    D = M (MᵀM)^(−1/2)

by the r×r Gram matrix, so that rows that are shared out cost one sum of r×r.
Paper: SUMO takes an SVD of M; the Gram matrix squares its condition, so directions below 3e-4 of the
largest are left out.
"""

from collections.abc import Sequence

from torch import Tensor

from eckart.linalg.polar import inverse_root
from eckart.optim.inner.inner import Moments
from eckart.optim.slot import Slot


def orthogonal(slots: Sequence[Slot], moments: Sequence[Moments]) -> list[Tensor]:
    return [_one(slot, each["exp_avg"]) for slot, each in zip(slots, moments, strict=True)]


def _one(slot: Slot, M: Tensor) -> Tensor:
    M.mul_(slot.group["betas"][0]).add_(slot.R)
    return M @ inverse_root(slot.shards.sum(M.mT @ M))
