"""Algebra of matrices that stay products B·A, never formed: O((m+n)r²) time and O((m+n)r) memory for an m×n matrix.

    B = Q_B R_B,  Aᵀ = Q_A R_A   ⇒   BA = Q_B (R_B R_Aᵀ) Q_Aᵀ,   with a core of at most r×r

The core carries norms, singular values and truncations; a sum of products is one product of stacked factors,
Σ_i w_i B_i A_i = [w₁B₁ … ] [A₁; …]. Factors of LoRA adapters, updates and compressed layers are such pairs. Averaging
A and B apart instead adds the cross terms B_i A_j. Norms, inner products and distances are in `factored_norms`.

Paper: none; the reduction by two QRs is folklore.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from eckart.linalg._check import require_count, require_finite, require_fraction, require_matrix, working_dtype

Pair = tuple[Tensor, Tensor]  # B (..., m, r) and A (..., r, n), standing for B·A (..., m, n)


def product_svd(
    B: Tensor,  # (..., m, r)
    A: Tensor,  # (..., r, n)
) -> tuple[Tensor, Tensor, Tensor]:  # (..., m, k), (..., k), (..., k, n), k = min(m, r, n)
    """The thin SVD of B·A without forming it.

    Args:
        B: Left factor, any float dtype.
        A: Right factor.

    Returns:
        U (..., m, k), S (..., k) descending and Vh (..., k, n), with k = min(m, r, n), in the dtype of B.

    Raises:
        ValueError: Factors that do not multiply, or have NaN or infinite entries.

    Example:
        >>> import torch
        >>> B, A = torch.tensor([[3.0], [4.0]]), torch.tensor([[0.0, 2.0, 0.0]])
        >>> U, S, Vh = product_svd(B, A)
        >>> print(S.round(decimals=4), (U * S @ Vh)[1, :2].abs().round(decimals=4))
        tensor([10.]) tensor([0., 8.])
    """
    U, S, Vh = _svd(B, A)
    return U.to(B.dtype), S.to(B.dtype), Vh.to(B.dtype)


def product_sum(pairs: Sequence[Pair], weights: Sequence[float] | None = None) -> Pair:
    """The weighted sum Σ w_i B_i A_i as one pair, exactly, of rank Σ r_i; `product_truncate` makes it smaller.

    Args:
        pairs: Pairs (B_i, A_i) with the same m and n; their ranks may differ.
        weights: One factor per pair; None for ones.

    Returns:
        B (..., m, Σr_i), which carries the weights, and A (..., Σr_i, n).

    Raises:
        ValueError: No pairs, shapes that differ, or a number of weights that differs from that of pairs.

    Example:
        >>> import torch
        >>> one, two = torch.ones(2, 1), torch.full((2, 1), 2.0)
        >>> B, A = product_sum([(one, one.T), (two, one.T)], weights=[1.0, -0.5])
        >>> print(B @ A)
        tensor([[0., 0.],
                [0., 0.]])
    """
    if not pairs:
        raise ValueError("pairs is empty; a sum needs at least one (B, A)")
    weights = [1.0] * len(pairs) if weights is None else weights
    if len(weights) != len(pairs):
        raise ValueError(f"weights has {len(weights)} numbers for {len(pairs)} pairs; give one each")
    for B, A in pairs:
        require_pair(B, A)
    require_same_product(pairs)
    left = torch.cat([weight * B for weight, (B, _) in zip(weights, pairs, strict=True)], dim=-1)
    return left, torch.cat([A for _, A in pairs], dim=-2)


def product_truncate(
    B: Tensor,  # (..., m, r)
    A: Tensor,  # (..., r, n)
    *,
    rank: int | None = None,
    energy: float | None = None,
) -> Pair:  # (..., m, s), (..., s, n)
    """The best approximation of B·A by fewer columns and rows, balanced.

    Args:
        B: Left factor.
        A: Right factor.
        rank: Largest rank to keep; above min(m, r, n) nothing is cut.
        energy: Keep the least rank that holds this share of ‖BA‖_F², from 0 to 1. In a batch, the share holds for
            every product. With both given, the smaller rank.

    Returns:
        B = U_s √S_s (..., m, s) and A = √S_s Vh_s (..., s, n), s ≥ 1, in the dtype of B.

    Raises:
        ValueError: Neither rank nor energy, rank below 1, energy outside [0, 1], factors that do not multiply.

    Example:
        >>> import torch
        >>> B = torch.diag(torch.tensor([3.0, 1.0]))
        >>> product_truncate(B, torch.eye(2), energy=0.9)[0].shape  # 9 of 10
        torch.Size([2, 1])
        >>> product_truncate(B, torch.eye(2), energy=0.91)[0].shape
        torch.Size([2, 2])
    """
    if rank is None and energy is None:
        raise ValueError("give rank= or energy=, what to truncate to")
    U, S, Vh = _svd(B, A)
    keep = S.shape[-1]
    if rank is not None:
        require_count("rank", rank, 1)
        keep = min(keep, rank)
    if energy is not None:
        require_fraction("energy", energy)
        tail = S.double().square().flip(-1).cumsum(-1).flip(-1)  # what is lost by keeping 0, 1, … values
        allowed = (1 - energy) * tail[..., :1] * (1 + 1e-6)
        keep = min(keep, max(1, int((tail > allowed).sum(-1).max())))
    return _balanced(U[..., :keep], S[..., :keep], Vh[..., :keep, :], B.dtype)


def balance(
    B: Tensor,  # (..., m, r)
    A: Tensor,  # (..., r, n)
) -> Pair:  # (..., m, k), (..., k, n)
    """The same product with both factors of equal size: BᵀB = AAᵀ = S, from U√S and √S Vh.

    Of all pairs with this product it has the least ‖B‖² + ‖A‖², which is 2‖BA‖_*.

    Args:
        B: Left factor.
        A: Right factor.

    Returns:
        B (..., m, k) and A (..., k, n), k = min(m, r, n), columns in descending order of S.

    Raises:
        ValueError: Factors that do not multiply, or have NaN or infinite entries.

    Example:
        >>> import torch
        >>> B, A = balance(torch.tensor([[100.0], [0.0]]), torch.tensor([[0.04]]))
        >>> print(B.abs().round(decimals=4).T, A.abs().round(decimals=4))
        tensor([[2., 0.]]) tensor([[2.]])
    """
    return _balanced(*_svd(B, A), B.dtype)


def product_core(B: Tensor, A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Q (..., m, ·), the core and P (..., n, ·) with BA = Q core Pᵀ, Q and P orthonormal."""
    Q, R = torch.linalg.qr(B)
    P, L = torch.linalg.qr(A.mT)
    return Q, R @ L.mT, P


def _svd(B: Tensor, A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`product_svd` in the working dtype."""
    require_pair(B, A)
    dtype = working_dtype(B.dtype)
    Q, core, P = product_core(B.to(dtype), A.to(dtype))
    U, S, Vh = torch.linalg.svd(core, full_matrices=False)
    return Q @ U, S, Vh @ P.mT


def _balanced(U: Tensor, S: Tensor, Vh: Tensor, dtype: torch.dtype) -> Pair:
    root = S.sqrt()
    return (U * root.unsqueeze(-2)).to(dtype), (root.unsqueeze(-1) * Vh).to(dtype)


def require_pair(B: Tensor, A: Tensor) -> None:
    for name, factor in (("B", B), ("A", A)):
        require_matrix(name, factor)
        require_finite(name, factor)
    if B.shape[-1] != A.shape[-2]:
        raise ValueError(f"B {tuple(B.shape)} and A {tuple(A.shape)} do not multiply: B is (m, r) and A is (r, n)")


def require_same_product(pairs: Sequence[Pair]) -> None:
    shapes = {(B.shape[-2], A.shape[-1]) for B, A in pairs}
    if len(shapes) > 1:
        raise ValueError(f"the products must have one shape (m, n), got {sorted(shapes)}")
