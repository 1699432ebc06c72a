"""LoHa: P = (B₁A₁) ∘ (B₂A₂), the entrywise product of two thin products: rank up to r² from 2r(m+n) parameters.

Row by row it is one thin product of rank r²,

    P = B A,    B (m, r²) = the products b₁ᵢ b₂ⱼ of each row's entries,    A (r², n) = those of each column's,

which layers use where r²(m+n) < mn: it costs less there than the dense P, and keeps no m×n tensor.
Paper: FedPara 2108.06098, LoHa in LyCORIS 2309.14859; they and PEFT form the dense P at each step.
"""

import torch
from torch import Tensor

from eckart.adapters.adapter import Adapter
from eckart.adapters.settings import Settings
from eckart.nn import Matrix


class Hadamard(Adapter):
    """P = (B₁A₁) ∘ (B₂A₂).

    Raises:
        ValueError: The rank is above min(m, n).
    """

    factors = ("B1", "A1", "B2", "A2")

    def __init__(
        self, matrix: Matrix, rank: int, scale: float, settings: Settings, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(matrix, rank, scale, settings, dtype, device)
        m, n = matrix.shape
        self.B1, self.A1 = self.make(m, rank), self.make(rank, n)
        self.B2, self.A2 = self.make(m, rank), self.make(rank, n)
        self.thin = rank**2 * (m + n) < m * n

    def pair(self) -> tuple[Tensor, Tensor] | None:
        if not self.thin:
            return None
        B = self.B1.unsqueeze(-1) * self.B2.unsqueeze(-2)  # (m, r, r)
        A = self.A1.unsqueeze(-2) * self.A2.unsqueeze(-3)  # (r, r, n)
        return B.flatten(-2), A.flatten(-3, -2)

    def delta(self) -> Tensor:
        return self.scale * ((self.B1 @ self.A1) * (self.B2 @ self.A2))
