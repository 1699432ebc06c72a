"""The leading right singular vectors of X, by an SVD or a randomised range finder. Both need the whole gradient."""

from torch import Tensor

from eckart.linalg import find_range, truncated_svd
from eckart.optim.step.slot import Slot

ROUNDS = 2  # of power


def by_svd(slot: Slot) -> Tensor:
    return truncated_svd(slot.gathered(), slot.rank)[2].mT.contiguous()


def by_range(slot: Slot) -> Tensor:
    return find_range(slot.gathered().mT, slot.rank, power=ROUNDS, generator=slot.generator())
