"""P = B·A, B (m, r), A (r, n): the shape of LoRA and of all that differ from it in start, scale or what trains.

r(m+n) parameters.
Paper: 2106.09685; none.
"""

import torch
from torch import Tensor

from eckart.adapters.adapter import Adapter
from eckart.adapters.settings import Settings
from eckart.nn import Matrix


class TwoFactor(Adapter):
    """P = B·A.

    Raises:
        ValueError: The rank is above min(m, n).
    """

    factors = ("B", "A")

    def __init__(
        self, matrix: Matrix, rank: int, scale: float, settings: Settings, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(matrix, rank, scale, settings, dtype, device)
        m, n = matrix.shape
        self.B = self.make(m, rank)
        self.A = self.make(rank, n)

    def pair(self) -> tuple[Tensor, Tensor]:
        return self.B, self.A
