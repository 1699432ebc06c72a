"""Norms, inner products and distances of matrices that stay products B·A, never formed.

‖BA‖_F is the norm of the small core of `factored`; ⟨B₁A₁, B₂A₂⟩ = tr((B₁ᵀB₂)(A₂A₁ᵀ)). All in float64, whatever the
dtype of the factors, so that close products can be told apart. Cost: O((m+n)r²).

`product_nuclear_norm` can be differentiated: ‖X‖_* = max tr(UᵀXV) over orthonormal U, V, so its slope is that of
tr(UᵀBAV) with the singular vectors held fixed, and no derivative of a QR or an SVD is taken (rank-deficient factors,
repeated and zero singular values have none).

Paper: none.
"""

import torch
from torch import Tensor

from eckart.linalg.factored import Pair, product_core, product_svd, require_pair, require_same_product


def product_norm(
    B: Tensor,  # (..., m, r)
    A: Tensor,  # (..., r, n)
) -> Tensor:  # (...)
    """The Frobenius norm ‖BA‖_F, in float64.

    Args:
        B: Left factor.
        A: Right factor.

    Returns:
        The norm (...), float64.

    Raises:
        ValueError: Factors that do not multiply, or have NaN or infinite entries.

    Example:
        >>> import torch
        >>> product_norm(torch.ones(200_000, 1), torch.ones(1, 200_000))
        tensor(200000., dtype=torch.float64)
    """
    require_pair(B, A)
    return torch.linalg.matrix_norm(product_core(B.double(), A.double())[1])


def product_nuclear_norm(
    B: Tensor,  # (..., m, r)
    A: Tensor,  # (..., r, n)
) -> Tensor:  # (...)
    """The nuclear norm ‖BA‖_* = Σ σ_i(BA) ≤ ½(‖B‖_F² + ‖A‖_F²), differentiable in both factors.

    Args:
        B: Left factor.
        A: Right factor.

    Returns:
        The norm (...), float64. Its slopes are U Vᵀ Aᵀ and Bᵀ U Vᵀ; directions whose singular value is 0 have none.

    Raises:
        ValueError: Factors that do not multiply, or have NaN or infinite entries.

    Example:
        >>> import torch
        >>> B, A = torch.tensor([[2.0, 0.0], [0.0, 1.0]], requires_grad=True), torch.tensor([[3.0, 0.0], [0.0, 0.0]])
        >>> norm = product_nuclear_norm(B, A)
        >>> norm.backward()
        >>> norm.item(), B.grad.tolist()
        (6.0, [[3.0, 0.0], [0.0, 0.0]])
    """
    require_pair(B, A)
    B, A = B.double(), A.double()
    with torch.no_grad():
        U, S, Vh = product_svd(B, A)
        rounding = S[..., :1] * max(B.shape[-2], A.shape[-1]) * torch.finfo(S.dtype).eps
        U = U * S.gt(rounding).unsqueeze(-2)
    return ((U.mT @ B) * (A @ Vh.mT).mT).sum((-2, -1))


def product_inner(first: Pair, second: Pair) -> Tensor:
    """The inner product ⟨B₁A₁, B₂A₂⟩ = tr((B₁A₁)ᵀ B₂A₂), in float64.

    Args:
        first: (B₁, A₁).
        second: (B₂, A₂), with the same m and n; the ranks may differ.

    Returns:
        The inner product (...), float64.

    Raises:
        ValueError: Shapes that do not fit, or NaN or infinite entries.

    Example:
        >>> import torch
        >>> pair = (torch.ones(3, 1), torch.ones(1, 2))
        >>> product_inner(pair, (2 * pair[0], pair[1]))
        tensor(12., dtype=torch.float64)
    """
    for pair in (first, second):
        require_pair(*pair)
    require_same_product((first, second))
    (B1, A1), (B2, A2) = ((B.double(), A.double()) for B, A in (first, second))
    return ((B1.mT @ B2) * (A1 @ A2.mT)).sum((-2, -1))


def product_distance(first: Pair, second: Pair) -> Tensor:
    """The distance ‖B₁A₁ − B₂A₂‖_F, accurate for nearly equal products.

    From the QRs of the stacked factors, not from ‖x‖² − 2⟨x,y⟩ + ‖y‖², which cannot see below 1e-8 of the norms.
    Stacked is [B₁, −B₂][A₁; A₂] or, when the factors themselves are close, [B₁−B₂, B₂][A₁; A₁−A₂], whose parts are
    as small as the distance.

    Args:
        first: (B₁, A₁).
        second: (B₂, A₂), with the same m and n; the ranks may differ.

    Returns:
        The distance (...), float64; exact to 1e-15 of the norms, and relatively so for close factors.

    Raises:
        ValueError: Shapes that do not fit, or NaN or infinite entries.

    Example:
        >>> import torch
        >>> B, A = torch.ones(2, 1, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
        >>> print(f"{product_distance((B, A), (B, A * (1 + 1e-12))):.3e}")
        2.000e-12
    """
    for pair in (first, second):
        require_pair(*pair)
    require_same_product((first, second))
    (B1, A1), (B2, A2) = ((B.double(), A.double()) for B, A in (first, second))
    B, A = torch.cat((B1, -B2), dim=-1), torch.cat((A1, A2), dim=-2)
    if B1.shape == B2.shape and A1.shape == A2.shape:
        norm = torch.linalg.matrix_norm
        apart = norm(B1) * norm(A1) + norm(B2) * norm(A2)
        near = (norm(B1 - B2) * norm(A1) + norm(B2) * norm(A1 - A2) < apart)[..., None, None]
        B = torch.where(near, torch.cat((B1 - B2, B2), dim=-1), B)
        A = torch.where(near, torch.cat((A1, A1 - A2), dim=-2), A)
    return torch.linalg.matrix_norm(product_core(B, A)[1])
