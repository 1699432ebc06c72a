"""Deep LoRA: P = W₃ W₂ W₁, three factors that all start tiny, so that training finds few directions, one after another.

    plain        P = W₃ W₂ W₁,               W₁ (r, n), W₂ (r, r), W₃ (m, r)
    compressed   P = L W̃₃ W̃₂ W̃₁ Rᵀ,          L (m, r), W̃_l (r, r), R (n, r)

The middle joins the shorter side, so that each layer still works on one thin pair. r(m+n) + r² parameters, or + 3r².
The rank is a bound, not a choice: what is learned has far lower rank (`linalg.invariant` says why).

Paper: 2406.04112. Its code trains with Adam, eps 1e-6, at a constant 1e-4; compressed at 1e-2 inside and 1e-4 for L
and R (`optimizers.param_groups`). Its default width is max(m, n), and its figures are of thin factors, as here.
"""

import torch
from torch import Tensor

from eckart.adapters.adapter import Adapter
from eckart.adapters.settings import Settings
from eckart.nn import Matrix


class Deep(Adapter):
    """P = W₃ W₂ W₁.

    Raises:
        ValueError: The rank is above min(m, n).
    """

    factors = ("W3", "W2", "W1")

    def __init__(
        self, matrix: Matrix, rank: int, scale: float, settings: Settings, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(matrix, rank, scale, settings, dtype, device)
        m, n = matrix.shape
        self.W3 = self.make(m, rank)
        self.W2 = self.make(rank, rank)
        self.W1 = self.make(rank, n)

    def pair(self) -> tuple[Tensor, Tensor]:
        return _joined(self.W3, self.W2, self.W1)


class CompressedDeep(Adapter):
    """P = L W̃₃ W̃₂ W̃₁ Rᵀ, with L and R the subspace in which a deep network of full width would move.

    Raises:
        ValueError: The rank is odd (it is 2 r̂: r̂ directions of the gradient on either side), or above min(m, n).
    """

    factors = ("left", "W3", "W2", "W1", "right")
    outer = ("left", "right")  # train at a smaller rate

    def __init__(
        self, matrix: Matrix, rank: int, scale: float, settings: Settings, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(matrix, rank, scale, settings, dtype, device)
        if rank % 2:
            other = rank + 1 if rank < min(matrix.shape) else rank - 1
            raise ValueError(
                f"rank: {rank} for {matrix.name} is odd, and half of it is the number of the gradient's directions; "
                + (f"give {other}" if other else f"leave it out with exclude={matrix.name!r}")
            )
        m, n = matrix.shape
        self.left = self.make(m, rank)
        self.W3, self.W2, self.W1 = (self.make(rank, rank) for _ in range(3))
        self.right = self.make(n, rank)

    def pair(self) -> tuple[Tensor, Tensor]:
        return _joined(self.left, self.W3 @ self.W2 @ self.W1, self.right.mT)


def _joined(left: Tensor, core: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The pair of left · core · right whose extra product is the cheaper one: r² min(m, n) operations."""
    if left.shape[-2] < right.shape[-1]:
        return left @ core, right
    return left, core @ right
