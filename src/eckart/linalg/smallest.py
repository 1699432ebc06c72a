"""The smallest singular triples of a matrix: the directions that it uses least.

V (n, r) are the eigenvectors of the smallest eigenvalues of the float64 Gram matrix of the short side, and the SVD of
the narrow W V gives U and S, orthonormal always. Singular values below 1e-8·σ₁ are not told apart by the Gram matrix:
among those, which directions come out is arbitrary.

Cost: m n p + 4/3 p³ flops, p = min(m, n). Paper: none.
"""

from typing import cast

import torch
from torch import Tensor

from eckart.linalg._check import require_matrix, require_rank, working_dtype
from eckart.linalg.svd import _gram_svd, _stacked


@torch.no_grad()
def smallest_svd(
    W: Tensor,  # (..., m, n)
    rank: int,  # r
) -> tuple[Tensor, Tensor, Tensor]:  # (..., m, r), (..., r), (..., r, n)
    """The last r of the min(m, n) singular triples.

    Args:
        W: Matrix or batch of matrices.
        rank: How many triples r, from 1 to min(m, n).

    Returns:
        U: Orthonormal columns, also where W has a lower rank.
        S: Descending, ≥ 0.
        Vh: Orthonormal rows. All in W's dtype; computed in at least float32, from a Gram matrix in float64.

    Raises:
        TypeError, ValueError: rank out of range; W is no floating-point matrix, is empty, or holds NaN or infinity.

    Example:
        >>> U, S, Vh = smallest_svd(torch.diag(torch.tensor([1.0, 3.0, 2.0])), 2)
        >>> S.tolist(), (U * S @ Vh).round(decimals=4).abs().tolist()
        ([2.0, 1.0], [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    """
    require_matrix("W", W)
    require_rank(rank, W)
    X = W.to(working_dtype(W.dtype))
    parts = _stacked(lambda X: _gram_svd(X, rank, smallest=True), X)
    return cast(tuple[Tensor, Tensor, Tensor], tuple(part.to(W.dtype) for part in parts))
