"""Compare two subspaces: principal angles, and the overlap of leading columns."""

import torch
from torch import Tensor

from eckart.linalg._check import require_matrix, require_rank, working_dtype
from eckart.linalg._scale import tame
from eckart.linalg.orthonormal import fast_orthonormal, require_columns


@torch.no_grad()
def principal_angles(
    A: Tensor,  # (..., m, a)
    B: Tensor,  # (..., m, b)
) -> Tensor:  # (..., min(a, b))
    """The principal angles between two subspaces, in radians, ascending.

    Cosines come from AᵀB and sines from the residual B − A AᵀB, so that angles near 0 and near π/2 are both accurate
    to rounding (Björck and Golub 1973).

    Args:
        A, B: any bases of the two subspaces (orthonormalised inside); their columns should be independent.

    Returns:
        angles: min(a, b) values in [0, π/2].

    Raises:
        ValueError: different m or batch shapes, more columns than rows, NaN or infinity.

    Example:
        >>> A = torch.tensor([[1.0], [0.0]])
        >>> principal_angles(A, torch.tensor([[1.0], [1e-5]])).item()
        9.999999747378752e-06
    """
    _require_pair(A, B)
    dtype = working_dtype(torch.promote_types(A.dtype, B.dtype))
    large, small = (fast_orthonormal(tame(name, X, dtype)) for name, X in (("A", A), ("B", B)))
    if large.shape[-1] < small.shape[-1]:
        large, small = small, large
    C = large.mT @ small
    cosines = torch.linalg.svdvals(C)
    sines = torch.linalg.svdvals(small - large @ C).flip(-1)
    return torch.atan2(sines, cosines).to(torch.promote_types(A.dtype, B.dtype))


@torch.no_grad()
def overlap(
    A: Tensor,  # (..., m, a)
    B: Tensor,  # (..., m, b)
    i: int | None = None,
    j: int | None = None,
) -> Tensor:  # (...)
    """How much two orthonormal bases share: φ = ‖A_iᵀ B_j‖_F² / min(i, j), with their first i and j columns.

    φ is the mean of the squared cosines of the principal angles (LoRA, arXiv 2106.09685, eq. 4).

    Args:
        A, B: orthonormal columns, most important first (not checked).
        i, j: how many leading columns of A and of B to compare; None takes all of them.

    Returns:
        φ: from 0 (orthogonal) to 1 (the smaller subspace lies in the larger).

    Raises:
        ValueError: different m or batch shapes, i or j out of range, NaN or infinity.

    Example:
        >>> overlap(torch.eye(4)[:, :2], torch.eye(4)[:, 1:3]).item()
        0.5
    """
    _require_pair(A, B)
    i = A.shape[-1] if i is None else i
    j = B.shape[-1] if j is None else j
    require_rank(i, A, "i")
    require_rank(j, B, "j")
    dtype = working_dtype(torch.promote_types(A.dtype, B.dtype))
    A, B = tame("A", A, dtype), tame("B", B, dtype)
    shared = (A[..., :i].mT @ B[..., :j]).square().sum(dim=(-2, -1))
    return (shared / min(i, j)).clamp(max=1.0)


def _require_pair(A: Tensor, B: Tensor) -> None:
    for name, X in (("A", A), ("B", B)):
        require_matrix(name, X)
        require_columns(name, X)
    if A.shape[:-1] != B.shape[:-1]:
        raise ValueError(f"A {tuple(A.shape)} and B {tuple(B.shape)} must agree in all but the number of columns")
