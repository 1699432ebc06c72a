"""Covariances as metrics: check, shrink, take roots and spectra, and move a weight to inputs that have already changed.

C = Σ x xᵀ (n, n) of a layer's inputs and G = Σ g gᵀ (m, m) of its output gradients turn ‖W − W'‖ into the error that
matters, ‖G^{1/2}(W − W')C^{1/2}‖_F. They are used in float64 whatever their dtype, and they may be singular: fewer
tokens than dimensions, dead channels, all zero.

Cost: one n×n `eigh` for `anchored_target`, (n, n) arithmetic for `shrink`.
"""

import torch
from torch import Tensor

from eckart.linalg._check import require_finite, require_fraction, require_matrix

NEGATIVE = 1e-5  # of ‖C‖_F: how far below zero rounding of a sum in float32 may push an eigenvalue


def require_covariance(name: str, C: Tensor, size: int) -> Tensor:
    """`C` in float64 and exactly symmetric, or a ValueError that says why it is no (size, size) covariance.

    Semidefinite, matrix by matrix: a Cholesky factorisation of C + NEGATIVE·‖C‖_F·I exists (n³/3 flops, 3 host reads).
    """
    require_matrix(name, C)
    if C.shape[-2:] != (size, size):
        raise ValueError(
            f"{name} must be (..., {size}, {size}) to fit W, got shape {tuple(C.shape)}; "
            f"input covariances are (n, n), output covariances (m, m) for W (m, n)"
        )
    require_finite(name, C)
    negative = max(NEGATIVE, torch.finfo(C.dtype).eps)
    given = C.to(torch.float64)
    C = (given + given.mT).div_(2)
    scale = given.diagonal(dim1=-2, dim2=-1).abs().amax(-1)
    gap = 2 * (given - C).abs().amax((-2, -1))
    if bool((gap > 1e-2 * scale).any()):
        raise ValueError(f"{name} is not symmetric: |C − Cᵀ| reaches {float(gap.max()):.3g}; pass X Xᵀ (cross= X X̂ᵀ)")
    unit = C / torch.where(scale > 0, scale, 1.0)[..., None, None]
    shift = torch.where(scale > 0, negative * torch.linalg.matrix_norm(unit), 1.0)
    unit.diagonal(dim1=-2, dim2=-1).add_(shift.unsqueeze(-1))
    if bool(torch.linalg.cholesky_ex(unit).info.any()):
        low, high = torch.linalg.eigvalsh(C)[..., [0, -1]].reshape(-1, 2).unbind(-1)
        worst = int((low / high.abs()).nan_to_num(0.0).argmin())
        raise ValueError(
            f"{name} is not positive semidefinite: eigenvalues from {float(low[worst]):.3g} to "
            f"{float(high[worst]):.3g}; pass X Xᵀ, accumulated in float32 or better"
        )
    return C


def shrink(
    C: Tensor,  # (..., n, n)
    alpha: float,
) -> Tensor:  # (..., n, n)
    """Pull a covariance towards a multiple of the identity: (1−α)C + α·tr(C)/n·I.

    Few tokens show too little of C; shrinking keeps directions that calibration did not see from counting nothing.
    With `cross=M` in an anchored problem, the matching cross-covariance is (1−α)(M − C) + shrink(C, α): together they
    add a penalty on ‖T − W‖ to the fit.

    Args:
        C: Covariance (..., n, n), any float dtype.
        alpha: From 0 (C itself) to 1 (its mean variance times I).

    Returns:
        The shrunk covariance, of the same trace and dtype.

    Raises:
        ValueError: alpha outside [0, 1], C not square or not finite.

    Example:
        >>> import torch
        >>> shrink(torch.diag(torch.tensor([4.0, 0.0])), 0.5)
        tensor([[3., 0.],
                [0., 1.]])
    """
    require_fraction("alpha", alpha)
    require_matrix("C", C)
    require_finite("C", C)
    n = C.shape[-1]
    if C.shape[-2] != n:
        raise ValueError(f"C must be square, got shape {tuple(C.shape)}; pass X Xᵀ, not X")
    exact = C.to(torch.float64)
    diagonal = exact.diagonal(dim1=-2, dim2=-1)
    exact = exact * (1 - alpha)
    exact.diagonal(dim1=-2, dim2=-1).add_(alpha * diagonal.mean(-1, keepdim=True))
    return exact.to(C.dtype)


def psd_eigenvalues(
    C: Tensor,  # (..., n, n)
) -> Tensor:  # (..., n) float64
    """The eigenvalues of a covariance, descending, in float64; those of XᵀX/N are the squared singular values of X/√N.

    Args:
        C: Covariance (..., n, n), any float dtype.

    Returns:
        Eigenvalues, largest first, never below zero, float64.

    Raises:
        ValueError: C is not square, symmetric, positive semidefinite and finite.

    Example:
        >>> import torch
        >>> X = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
        >>> psd_eigenvalues(X.T @ X)
        tensor([16.,  9.], dtype=torch.float64)
    """
    require_matrix("C", C)
    return torch.linalg.eigvalsh(require_covariance("C", C, C.shape[-1])).flip(-1).clamp_min(0)


def psd_root(C: Tensor) -> Tensor:
    """L (..., n, n) with L Lᵀ = C, for a float64 covariance of any rank, to n·eps·λ₁.

    A Cholesky factor where C is clear of singular; else Q Λ^{1/2}, where eigenvalues up to n·eps·λ₁ count as zero.
    """
    rounding = C.shape[-1] * torch.finfo(C.dtype).eps
    L, failed = torch.linalg.cholesky_ex(C)
    pivots = L.diagonal(dim1=-2, dim2=-1).square()
    if bool(((failed == 0) & (pivots.amin(-1) > rounding * pivots.amax(-1))).all()):
        return L
    values, Q = torch.linalg.eigh(C)
    cut = rounding * values[..., -1:]
    return Q * torch.where(values > cut, values, 0.0).sqrt().unsqueeze(-2)


def known(C: Tensor) -> Tensor:
    """C, or the identity where C is all zero: nothing was seen, so there is no metric."""
    eye = torch.eye(C.shape[-1], dtype=C.dtype, device=C.device)
    return torch.where((C == 0).all(-1).all(-1)[..., None, None], eye, C)


def anchored_target(
    W: Tensor,  # (..., m, n)
    input_covariance: Tensor,  # (..., n, n)
    cross: Tensor,  # (..., n, n)
) -> Tensor:  # (..., m, n)
    """The dense weight that best gives W's outputs when the inputs have changed from X to X̂.

    T = W + W(M − C)C⁺ minimises ‖W X − T X̂‖_F, with C = X̂X̂ᵀ and M = XX̂ᵀ. Along directions that X̂ never takes,
    where any T would do, it keeps W. Every low-rank fit to W's outputs is then a fit to T in the metric C, since
    ‖W X − W'X̂‖² = ‖(T − W')C^{1/2}‖² + a constant.

    C⁺ leaves out eigenvalues up to 10·eps·‖C‖_F + n·eps64·λ₁, eps being that of the covariance's own dtype (what
    rounding of C's entries alone can produce). There T = W, so a generous cut-off costs little.

    Args:
        W: (..., m, n), any float dtype. Layers with the same input can be stacked along m: one `eigh` serves all.
        input_covariance: C = X̂X̂ᵀ of the changed inputs.
        cross: M = XX̂ᵀ, original inputs by changed inputs, on the same scale as C.

    Returns:
        T, in the dtype of W.

    Raises:
        ValueError: Shapes that do not fit W, non-finite entries, C not symmetric positive semidefinite.

    Example:
        >>> import torch
        >>> X_hat = torch.diag(torch.tensor([2.0, 0.0]))  # the first input has doubled, the second is gone
        >>> W = torch.tensor([[1.0, 5.0]])
        >>> anchored_target(W, X_hat @ X_hat.T, torch.eye(2) @ X_hat.T)
        tensor([[0.5000, 5.0000]])
    """
    require_matrix("W", W)
    require_finite("W", W)
    eps = torch.finfo(input_covariance.dtype).eps
    C = require_covariance("input_covariance", input_covariance, W.shape[-1])
    require_matrix("cross", cross)
    require_finite("cross", cross)
    if cross.shape[-2:] != C.shape[-2:]:
        raise ValueError(f"cross must be (..., n, n) like input_covariance, got {tuple(cross.shape)}; pass X X̂ᵀ")
    values, Q = torch.linalg.eigh(C)
    storage = 10 * eps * torch.linalg.matrix_norm(C)
    cut = storage + C.shape[-1] * torch.finfo(torch.float64).eps * values[..., -1]
    keep = values > cut.unsqueeze(-1)
    inverse = torch.where(keep, values, 1.0).reciprocal() * keep
    exact = W.to(torch.float64)
    change = exact @ (cross.to(torch.float64) - C)
    return (exact + ((change @ Q) * inverse.unsqueeze(-2)) @ Q.mT).to(W.dtype)
