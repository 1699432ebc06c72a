"""An orthonormal basis of the columns of R, as a QR decomposition gives it: Dion's P (2504.05295).

Cost: 4 p r². Where rows are shared out, R travels.
Paper: none; the signs of columns, which QR leaves open, cancel in Dion's update.
"""

from collections.abc import Sequence

from torch import Tensor

from eckart.linalg.orthonormal import fast_orthonormal
from eckart.optim.inner.inner import Moments
from eckart.optim.step.slot import Slot


def orthonormal(slots: Sequence[Slot], moments: Sequence[Moments]) -> list[Tensor]:
    return [slot.shards.part(fast_orthonormal(slot.shards.gather(slot.R))) for slot in slots]
