"""Systems with small symmetric positive matrices (Gram matrices of factors), solved without a host read.

    solve_gram        (M + λI) X = Y          Cholesky
    solve_sylvester   P X + X Q = C           the matrix sign function (Roberts 1980, Int. J. Control 32:677)

The sign of Z = [[P, C], [0, −Q]] is [[I, 2X], [0, −I]], and Newton's Z ← ½(cZ + (cZ)⁻¹) finds it by products and
inverses alone, block by block. With c = (λ_max λ_min)^−½, estimated by norms, a condition κ falls to about ½√κ each
time. An eigendecomposition would do it too, but waits for the host on a GPU.

The entries of a Gram matrix BᵀB in float32 carry errors of a few ε‖BᵀB‖_F, up to 15 for 16 000 rows of B, so that the
eigenvalues that should be 0 come out that far on either side: λ is never below 32 ε‖M‖_F.

Cost: 2r³/3 + r² k; some 2·12 inverses of r×r.
Paper: none.
"""

import torch
from torch import Tensor

from eckart.linalg._check import require_matrix, working_dtype

NEWTON_STEPS = 12  # takes κ = 1e16 to 1 within rounding


@torch.no_grad()
def solve_gram(
    M: Tensor,  # (..., r, r) symmetric, positive semidefinite
    Y: Tensor,  # (..., r, k)
    damping: float = 0.0,  # λ ≥ 0
) -> Tensor:  # (..., r, k)
    """X with (M + λI) X = Y, without a host read.

    λ is raised by the rounding of M (32 ε‖M‖_F, and 32 times that where M is then still not positive), so that a Gram
    matrix of dependent columns has an answer; where M = 0 and λ = 0 the answer is 0, as the pseudo-inverse's. What is
    not finite gives NaN.

    Args:
        M: Gram matrices such as BᵀB, any float dtype; the arithmetic is float32 or float64.
        Y: Right-hand sides.
        damping: λ.

    Returns:
        X, in Y's dtype.

    Raises:
        ValueError: M is not square, or does not fit Y; λ is negative.

    Example:
        >>> X = solve_gram(torch.diag(torch.tensor([3.0, 1.0])), torch.ones(2, 1), damping=1.0)
        >>> X.mul(1e4).round().div(1e4).flatten().tolist()
        [0.25, 0.5]
    """
    _require_square("M", M)
    if M.shape[-1] != Y.shape[-2]:
        raise ValueError(f"M {tuple(M.shape)} and Y {tuple(Y.shape)} do not fit: Y needs {M.shape[-1]} rows")
    if not damping >= 0:
        raise ValueError(f"damping: {damping!r}; give λ of at least 0")
    dtype = working_dtype(M.dtype)
    regular, zero = _regular(M.to(dtype), damping)
    R, failed = torch.linalg.cholesky_ex(regular)
    firmer = torch.linalg.cholesky_ex(_plus(regular, 32 * _rounding(regular)))[0]
    R = torch.where(failed[..., None, None] > 0, firmer, R)
    X = torch.cholesky_solve(Y.to(dtype), R)
    return torch.where(zero, torch.zeros_like(X), X).to(Y.dtype)


@torch.no_grad()
def solve_sylvester(
    P: Tensor,  # (..., r, r) symmetric, positive semidefinite
    Q: Tensor,  # (..., k, k) symmetric, positive semidefinite
    C: Tensor,  # (..., r, k)
) -> Tensor:  # (..., r, k)
    """X with P X + X Q = C, without a host read.

    P and Q are both raised by the rounding of the larger of them (32 ε‖·‖_F), so that a singular one has an answer.
    Both zero gives 0.

    Args:
        P: Any float dtype; the arithmetic is float32 or float64.
        Q: As P.
        C: Right-hand side.

    Returns:
        X, in C's dtype; its residual is about κ ε ‖C‖, κ the condition of P and Q together.

    Raises:
        ValueError: P or Q is not square, or they do not fit C.

    Example:
        >>> X = solve_sylvester(torch.eye(2), 3 * torch.eye(2), torch.tensor([[4.0, 8.0], [0.0, 4.0]]))
        >>> X.mul(1e4).round().div(1e4).abs().tolist()
        [[1.0, 2.0], [0.0, 1.0]]
    """
    _require_square("P", P)
    _require_square("Q", Q)
    if C.shape[-2:] != (P.shape[-1], Q.shape[-1]):
        raise ValueError(f"C {tuple(C.shape)} must be ({P.shape[-1]}, {Q.shape[-1]}), as P and Q are")
    dtype = working_dtype(C.dtype)
    least = torch.maximum(_rounding(P.to(dtype)), _rounding(Q.to(dtype)))
    zero = least == 0
    P, Q, X = (each.to(dtype) for each in (P, Q, C))
    P, Q = (_plus(each, torch.where(zero, 1.0, least)) for each in (P, Q))
    for _ in range(NEWTON_STEPS):
        P_inverse, Q_inverse = (torch.linalg.inv_ex(each)[0] for each in (P, Q))
        largest = torch.maximum(_norm(P), _norm(Q))
        c = (torch.maximum(_norm(P_inverse), _norm(Q_inverse)) / largest).sqrt()
        X = 0.5 * (c * X + P_inverse @ X @ Q_inverse / c)
        P, Q = 0.5 * (c * P + P_inverse / c), 0.5 * (c * Q + Q_inverse / c)
    return torch.where(zero, torch.zeros_like(X), 0.5 * X).to(C.dtype)


def _regular(M: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """M + λI with λ above M's rounding, and where there is nothing to solve, (..., 1, 1)."""
    shift = damping + _rounding(M)
    zero = shift == 0
    return _plus(M, torch.where(zero, 1.0, shift)), zero


def _rounding(M: Tensor) -> Tensor:  # (..., 1, 1)
    return 32 * torch.finfo(M.dtype).eps * _norm(M)


def _plus(M: Tensor, shift: Tensor) -> Tensor:
    return M + shift * torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)


def _norm(M: Tensor) -> Tensor:  # (..., 1, 1)
    return torch.linalg.matrix_norm(M, keepdim=True)


def _require_square(name: str, M: Tensor) -> None:
    require_matrix(name, M)
    if M.shape[-1] != M.shape[-2]:
        raise ValueError(f"{name} {tuple(M.shape)} must be square")
