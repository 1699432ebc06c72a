"""LoKr: P = W₁ ⊗ W₂, W₁ (m₁, n₁), W₂ (m₂, n₂), m = m₁m₂, n = n₁n₂; a W that is large is a thin product itself.

    (W₁ ⊗ W₂) x = the rows of W₁ X W₂ᵀ,     X (n₁, n₂) = x by rows

so that a linear layer costs n₂m₂ min(…) + … multiplications for each token and never forms the m×n matrix. P has rank
rank W₁ · rank W₂, full as a rule. The sides are split as near to their square roots as they divide, or at `factor`;
a convolution's kernel stays with W₂. W₂ is B₂A₂ of rank r where r < max(m₂, channels₂)/2; W₁ likewise, but only with
`both`.

Paper: LyCORIS 2309.14859; the rules are PEFT's, which forms the dense P at each step (and mixes up the dimensions of a
Conv1d's full W₂).
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eckart.adapters.adapter import Adapter
from eckart.adapters.settings import Settings
from eckart.nn import Matrix


class Kronecker(Adapter):
    """P = W₁ ⊗ W₂; `settings.options` holds "factor" (−1, or a number to split off) and "both"."""

    bounded = False  # where r is too large to save anything, W₂ is full
    thin = False

    def __init__(
        self, matrix: Matrix, rank: int, scale: float, settings: Settings, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(matrix, rank, scale, settings, dtype, device)
        factor, both = settings.options["factor"], settings.options["both"]
        layer: Any = matrix.module
        channels: int = layer.in_channels // layer.groups if matrix.kind == "conv" else matrix.shape[1]
        m1, m2 = split(matrix.shape[0], factor)
        n1, c2 = split(channels, factor)
        n2 = c2 * (matrix.shape[1] // channels)
        names: tuple[str, ...]
        if both and rank < max(m1, n1) / 2:
            self.B1, self.A1 = self.make(m1, rank), self.make(rank, n1)
            names = ("B1", "A1")
        else:
            self.W1 = self.make(m1, n1)
            names = ("W1",)
        if rank < max(m2, c2) / 2:
            self.B2, self.A2 = self.make(m2, rank), self.make(rank, n2)
            names += ("B2", "A2")
        else:
            self.W2 = self.make(m2, n2)
            names += ("W2",)
        self.factors = names

    def sides(self) -> tuple[Tensor, Tensor]:  # (m₁, n₁), (m₂, n₂)
        """W₁ and W₂."""
        W1 = self.W1 if "W1" in self.factors else self.B1 @ self.A1
        return W1, self.W2 if "W2" in self.factors else self.B2 @ self.A2

    def pair(self) -> None:
        return None

    def delta(self) -> Tensor:
        W1, W2 = self.sides()
        P = W1[..., :, None, :, None] * W2[..., None, :, None, :]
        return self.scale * P.reshape(*P.shape[:-4], *self.shape)

    def times(self, x: Tensor) -> Tensor:  # (..., n) -> (..., m)
        W1, W2 = (W.to(x.dtype) for W in self.sides())
        (m1, n1), (m2, n2) = W1.shape, W2.shape
        X = x.unflatten(-1, (n1, n2))
        right_first = n1 * m2 * (n2 + m1) <= m1 * n2 * (n1 + m2)
        Y = _left(F.linear(X, W2), W1) if right_first else F.linear(_left(X, W1), W2)
        return self.scale * Y.flatten(-2)


def _left(X: Tensor, W: Tensor) -> Tensor:  # (..., n, k) -> (..., m, k)
    """W X, as one product for all tokens."""
    return F.linear(X.mT, W).mT


def split(side: int, factor: int = -1) -> tuple[int, int]:
    """Two numbers whose product is `side`.

    Args:
        side: To split.
        factor: −1 for the divisors nearest to the square root; else one of them, if it divides `side`, or the divisors
            nearest to the root of which the smaller is at most `factor`.

    Returns:
        `factor` or the smaller number first.

    Raises:
        ValueError: The factor is 0 or below −1.

    Example:
        >>> split(128), split(127), split(128, 4), split(576, 7)
        ((8, 16), (1, 127), (4, 32), (6, 96))
    """
    if factor < 1 and factor != -1:
        raise ValueError(f"factor: {factor}; give a whole number of at least 1, or -1 for the nearest to a square")
    if factor > 0 and side % factor == 0:
        return factor, side // factor
    most = side if factor == -1 else factor
    small = max(d for d in range(1, math.isqrt(side) + 1) if side % d == 0 and d <= most)
    return small, side // small
