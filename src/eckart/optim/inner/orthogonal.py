"""The polar factor of the momentum: all its singular values become 1 (SUMO 2505.24749, Muon).

    M ← β M + R,    D = 0.2 √max(m, n) M (MᵀM)^(−1/2)

by the r×r Gram matrix, so that rows that are shared out cost sums of r×r. A Gram matrix squares the condition of M:
the second round brings the small directions to 1 which the first could not tell from rounding. The factor makes the
update as large as Adam's, whatever the shape: at full rank its entries have a root mean square of 0.2.
Paper: SUMO takes an SVD of M; ours agrees with it for directions down to 1e-4 of the largest (float32), and leaves
smaller ones, which are rounding, smaller. The row follows its basis by a power step, where SUMO finds a range anew, so
that the gradient need not be gathered. The factor is of its code; its equations have √max(m, n) in words.
"""

from collections.abc import Sequence

from torch import Tensor

from eckart.linalg import inverse_root
from eckart.optim.inner.inner import Moments
from eckart.optim.sharding import together
from eckart.optim.step.slot import Slot

ROUNDS = 2
SIZE = 0.2


def orthogonal(slots: Sequence[Slot], moments: Sequence[Moments]) -> list[Tensor]:
    beta, over = slots[0].group["betas"][0], [slot.shards.rows for slot in slots]
    D = [each["exp_avg"].mul_(beta).add_(slot.R) for slot, each in zip(slots, moments, strict=True)]
    for _ in range(ROUNDS):
        grams = together(over, [each.mT @ each for each in D])
        D = [each @ inverse_root(gram) for each, gram in zip(D, grams, strict=True)]
    return [each * (SIZE * max(slot.shape) ** 0.5) for each, slot in zip(D, slots, strict=True)]
