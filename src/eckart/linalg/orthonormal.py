"""Orthonormal bases by CholeskyQR2, checked on the device, with Householder QR where it fails.

Y = Q R with RᵀR = YᵀY, done twice: matrix products and one r×r factorisation, where Householder QR is sequential.
Columns are scaled to unit length first, so that sketches whose columns differ only in length (G Gᵀ times a warm basis)
are easy. The inverse of the first factor bounds what its pass has lost: columns that are nearly orthogonal, as those of
a warm basis are, need no second one. The second Gram matrix tells whether the first pass worked at all; rank-deficient
and zero Y fail it and go to Householder QR.

Cost: 4 m r² flops, 8 m r² with a second pass. Yamamoto et al. 2015, "Roundoff error analysis of the CholeskyQR2
algorithm" (ETNA 44).
Paper: the scaling, the second pass only where it is needed and the check on its Gram matrix are ours.
"""

import torch
from torch import Tensor

from eckart.linalg._check import require_matrix, working_dtype
from eckart.linalg._scale import tame, unit_peak

ENOUGH = 2.8  # R⁻¹ amplifies rounding by 8 at most: below 1e-6 in float32


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
    """CholeskyQR, twice where once is not enough; Householder QR for the matrices of the batch where that fails.

    One host read, another one where there is a second pass.
    """
    once, inverse = _cholesky_qr(_unit_columns(Y))
    # Column j of Q is off from orthonormal by rounding times the squared length of column j of R⁻¹; NaN is not below.
    if bool((torch.linalg.vector_norm(inverse, dim=-2) < ENOUGH).all()):
        return once
    Q, good = _second_pass(once)
    if not bool(good.all()):
        bad = ~good
        Q[bad] = torch.linalg.qr(_unit_columns(Y[bad])).Q
    return Q


def cholesky_orthonormal(
    Y: Tensor,  # (..., m, r), r ≤ m, float32 or float64
) -> tuple[Tensor, Tensor]:  # (..., m, r), (...)
    """CholeskyQR2 without a host read, and where its check, made on the device, passes."""
    return _second_pass(_cholesky_qr(_unit_columns(Y))[0])


def _second_pass(once: Tensor) -> tuple[Tensor, Tensor]:  # (..., m, r), (...)
    """Another pass, and whether the one before it worked: ‖QᵀQ − I‖ < ½ after one, and then this ends at rounding."""
    M = once.mT @ once
    R, info = torch.linalg.cholesky_ex(M, upper=True)
    error = (M - torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)).square().sum(dim=(-2, -1))
    return torch.linalg.solve_triangular(R, once, upper=True, left=False), (info == 0) & (error < 0.25)


def _unit_columns(Y: Tensor) -> Tensor:
    """Y with columns of length 1; zero columns stay zero."""
    Y = unit_peak(Y, dim=-2)
    length = torch.linalg.vector_norm(Y, dim=-2, keepdim=True)
    return Y / torch.where(length > 0, length, 1.0)


def _cholesky_qr(Y: Tensor) -> tuple[Tensor, Tensor]:  # (..., m, r), (..., r, r)
    """One pass Y R⁻¹ with RᵀR = YᵀY; also R⁻¹, all NaN where the factorisation failed."""
    R, info = torch.linalg.cholesky_ex(Y.mT @ Y, upper=True)
    eye = torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
    inverse = torch.linalg.solve_triangular(R, eye.expand_as(R), upper=True, left=False)
    inverse = torch.where((info == 0)[..., None, None], inverse, torch.nan)
    return Y @ inverse, inverse


def require_columns(name: str, Y: Tensor) -> None:
    """Raise unless `Y` (..., m, r) has r ≤ m."""
    m, r = Y.shape[-2:]
    if r > m:
        raise ValueError(f"{name} {tuple(Y.shape)} has more columns than rows; pass {name}.mT or fewer columns")
