"""Spectra of symmetric positive semidefinite matrices (covariances), where the values are eigenvalues.

A covariance C = XᵀX/N has eigenvalues λ; the singular values of X/√N are √λ. Computing them from C costs one
`eigvalsh` in float64, (4/3)n³ flops, and rounding can leave tiny negative numbers, which are zero.
"""

import torch
from torch import Tensor

from ._check import require_finite, require_matrix


def psd_eigenvalues(
    C: Tensor,  # (..., n, n) symmetric positive semidefinite
) -> Tensor:  # (..., n) float64
    """The eigenvalues of a positive semidefinite matrix, descending, in float64.

    Args:
        C: Symmetric positive semidefinite matrix, for instance a covariance; its symmetric part is used.

    Returns:
        The eigenvalues, largest first, never below zero, float64.

    Raises:
        ValueError: C is not square or has a NaN or an infinity.

    Example:
        >>> import torch
        >>> X = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
        >>> psd_eigenvalues(X.T @ X)
        tensor([16.,  9.], dtype=torch.float64)
    """
    require_matrix("C", C)
    require_finite("C", C)
    if C.shape[-1] != C.shape[-2]:
        raise ValueError(f"C must be square, got shape {tuple(C.shape)}; pass XᵀX/N, not X")
    C = C.to(torch.float64)
    return torch.linalg.eigvalsh((C + C.mT) / 2).flip(-1).clamp_min(0)
