"""Orthonormal bases by CholeskyQR2, checked on the device, with Householder QR where it fails.

Y = Q R with RᵀR = YᵀY, done twice: matrix products and one r×r factorisation, where Householder QR is sequential.
Columns are scaled to unit length first, so that sketches whose columns differ only in length (G Gᵀ times a warm basis)
are easy. The second Gram matrix tells whether the first pass worked; rank-deficient and zero Y fail it and go to
Householder QR.

Cost: 6 m r² flops. Yamamoto et al. 2015, "Roundoff error analysis of the CholeskyQR2 algorithm" (ETNA 44).
Paper: the scaling and the check on the second Gram matrix are ours.
"""

import torch
from torch import Tensor

from eckart.linalg._check import require_matrix, working_dtype
from eckart.linalg._scale import tame, unit_peak


@torch.no_grad()
def orthonormalize(
    Y: Tensor,  # (..., m, r)
) -> Tensor:  # (..., m, r)
    """An orthonormal basis whose span holds the columns of Y.

    Costs two host reads: one for the check of the input, one to learn whether Householder QR is needed.

    Args:
        Y: columns to orthonormalise, r ≤ m. They may be dependent or zero: the basis is then completed arbitrarily.

    Returns:
        Q: (..., m, r) with QᵀQ = I to the rounding of Y's dtype; span(Q) contains span(Y).

    Raises:
        ValueError: r > m, or Y holds NaN or infinity.

    Example:
        >>> Y = torch.tensor([[3.0, 3.0], [4.0, 4.0], [0.0, 0.0]])
        >>> Q = orthonormalize(Y)
        >>> (Q.mT @ Q - torch.eye(2)).abs().max().item() < 1e-6, (Q @ (Q.mT @ Y) - Y).abs().max().item() < 1e-5
        (True, True)
    """
    require_matrix("Y", Y)
    require_columns("Y", Y)
    return fast_orthonormal(tame("Y", Y, working_dtype(Y.dtype))).to(Y.dtype)


def fast_orthonormal(
    Y: Tensor,  # (..., m, r), r ≤ m, float32 or float64, finite
) -> Tensor:  # (..., m, r)
    """CholeskyQR2; Householder QR for the matrices of the batch where its check fails. One host read."""
    Q, good = cholesky_orthonormal(Y)
    if not bool(good.all()):
        bad = ~good
        Q[bad] = torch.linalg.qr(_unit_columns(Y[bad])).Q
    return Q


def cholesky_orthonormal(
    Y: Tensor,  # (..., m, r), r ≤ m, float32 or float64
) -> tuple[Tensor, Tensor]:  # (..., m, r), (...)
    """CholeskyQR2 without a host read, and where its check, made on the device, passes."""
    once, _, first = _cholesky_qr(_unit_columns(Y))
    Q, M, second = _cholesky_qr(once)
    error = (M - torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)).square().sum(dim=(-2, -1))
    # ‖QᵀQ − I‖ < ½ after one pass: then the second one ends at rounding.
    return Q, (first == 0) & (second == 0) & (error < 0.25)


def _unit_columns(Y: Tensor) -> Tensor:
    """Y with columns of length 1; zero columns stay zero."""
    Y = unit_peak(Y, dim=-2)
    length = torch.linalg.vector_norm(Y, dim=-2, keepdim=True)
    return Y / torch.where(length > 0, length, 1.0)


def _cholesky_qr(Y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One pass Y R⁻¹ with RᵀR = YᵀY; also YᵀY and LAPACK's info (0 where the factorisation worked)."""
    M = Y.mT @ Y
    R, info = torch.linalg.cholesky_ex(M, upper=True)
    return torch.linalg.solve_triangular(R, Y, upper=True, left=False), M, info


def require_columns(name: str, Y: Tensor) -> None:
    """Raise unless `Y` (..., m, r) has r ≤ m."""
    m, r = Y.shape[-2:]
    if r > m:
        raise ValueError(f"{name} {tuple(Y.shape)} has more columns than rows; pass {name}.mT or fewer columns")
