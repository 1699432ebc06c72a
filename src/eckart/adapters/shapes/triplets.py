"""P = P·Λ·Q, a sum of triplets λ_i p_i q_iᵀ that can be dropped one by one: the shape of AdaLoRA.

    P (m, r) and Q (r, n) near orthonormal columns and rows (a penalty keeps them so), Λ (r,) diagonal

As a pair: B = P∘λ, A = Q. r(m+n+1) parameters.
Paper: AdaLoRA 2303.10512; none.
"""

from typing import ClassVar

import torch
from torch import Tensor

from eckart.adapters.adapter import Adapter
from eckart.adapters.settings import Settings
from eckart.nn import Matrix


class Triplets(Adapter):
    """P Λ Q.

    `kept` says which triplets a `RankSchedule` has left in; the others have λ = 0 until it takes them back, or until
    `shrink` removes them.
    """

    factors = ("P", "Lambda", "Q")
    rank_dims: ClassVar[dict[str, int]] = {"P": -1, "Lambda": -1, "Q": -2}  # where r stands in each factor

    kept: Tensor  # (r,) bool, the same for all members of a stack

    def __init__(
        self, matrix: Matrix, rank: int, scale: float, settings: Settings, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(matrix, rank, scale, settings, dtype, device)
        m, n = matrix.shape
        self.P = self.make(m, rank)
        self.Lambda = self.make(rank)
        self.Q = self.make(rank, n)
        self.register_buffer("kept", torch.ones(rank, dtype=torch.bool, device=device), persistent=False)

    def pair(self) -> tuple[Tensor, Tensor]:
        return self.P * self.Lambda.unsqueeze(-2), self.Q
