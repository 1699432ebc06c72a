"""P = B·R·A with B (m, r) and A (r, n) kept as they start: only the core R (r, r) trains.

r² parameters for each matrix, whatever its size. B and A are in the files all the same, as R means nothing without.
Paper: LoRA-XS 2405.17604, LoRA-SB 2411.19557; none.
"""

import torch
from torch import Tensor

from eckart.adapters.adapter import Adapter
from eckart.adapters.settings import Settings
from eckart.nn import Matrix


class Core(Adapter):
    """P = B·R·A.

    Example:
        >>> from eckart.nn import matrices
        >>> (matrix,) = matrices(torch.nn.Linear(6, 4))
        >>> core = Core(matrix, 2, 1.0, Settings("lora-xs", {}, trains=("R",)), torch.float32, torch.device("cpu"))
        >>> [tuple(parameter.shape) for parameter in core.trained()], tuple(core.delta().shape)
        ([(2, 2)], (4, 6))
    """

    factors = ("B", "R", "A")

    def __init__(
        self, matrix: Matrix, rank: int, scale: float, settings: Settings, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(matrix, rank, scale, settings, dtype, device)
        m, n = matrix.shape
        self.B = self.make(m, rank)
        self.R = self.make(rank, rank)
        self.A = self.make(rank, n)

    def pair(self) -> tuple[Tensor, Tensor]:
        """(B R, A), or (B, R A) where that is the smaller product."""
        m, n = self.shape
        return (self.B @ self.R, self.A) if m <= n else (self.B, self.R @ self.A)
