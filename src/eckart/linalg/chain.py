"""Small networks that follow a deep linear network, started inside its invariant subspaces.

    T3 (2406.04112)  P(t) − U_L1 W̃_L(t) … W̃_1(t) V_11ᵀ = (Π ρ_l) U_L2 V_12ᵀ, whose norm is √(d−2r) Π ρ_l ≤ √(d−2r) ε^L
    T5 (2311.05061)  the same chain, started from the SVD of a surrogate of the target

T-numbers as in `invariant`, which gives V_11.

Cost: m·n·r for T3, one rank-r̂ SVD for T5. Parameters: L d² → L (2r)² + 4 d r (T3), 2 d r̂ + (L−2) r̂² (T5).
Paper: none.
"""

import torch
from torch import Tensor

from eckart.linalg._check import require_count
from eckart.linalg.invariant import propagate, require_positive
from eckart.linalg.svd import truncated_svd


def compressed_chain(
    weights: list[Tensor],  # W_1 (d1, n), …, W_L (m, d_{L-1})
    V: Tensor,  # (n, 2r)
    eps: float,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """The small network that follows the large one: left · W̃_L … W̃_1 · rightᵀ (T3).

    Training the W̃_l alone follows the large product up to √(d−2r) ε^L; L d² parameters become L (2r)² + 4 d r.
    In completion (T4) train `left` and `right` too, with a smaller learning rate (γ = 0.01).

    Args:
        weights: W_1(0), …, W_L(0), first layer first, each ε times an orthogonal matrix.
        V: V_11 from `invariant_subspace`.
        eps: ε > 0.

    Returns:
        left: U_L1 (m, 2r).
        inner: W̃_1(0), …, W̃_L(0), each ε I (2r, 2r).
        right: V_11 (n, 2r).

    Raises:
        ValueError: the shapes do not chain, or eps is not positive.

    Example:
        >>> left, inner, right = compressed_chain([0.1 * torch.eye(4)] * 3, torch.eye(4)[:, :2], 0.1)
        >>> left.shape, [W[0, 0].item() for W in inner], sum(W.numel() for W in (left, *inner, right))
        (torch.Size([4, 2]), [0.10000000149011612, 0.10000000149011612, 0.10000000149011612], 28)
    """
    left, _ = propagate(weights, V, eps)[-1]
    inner = [eps * torch.eye(V.shape[-1], dtype=V.dtype, device=V.device) for _ in weights]
    return left, inner, V


def spectral_start(
    surrogate: Tensor,  # (m, n)
    rank: int,  # r̂
    depth: int,  # L
    eps: float,
) -> list[Tensor]:  # W_1 (r̂, n), r̂×r̂ …, W_L (m, r̂)
    """A deep factorisation of width r̂ that starts in the leading subspaces of a surrogate: ε V_r̂ᵀ, ε I, …, ε U_r̂ (T5).

    Args:
        surrogate: M̂: the target Φ (factorisation), p⁻¹ mask∘Φ (completion), or m⁻¹ Σ y_i A_i (sensing).
        rank: width r̂; the paper's code takes twice the rank of the target.
        depth: number of factors L ≥ 2.
        eps: ε > 0, the scale of every factor (1e-2).

    Returns:
        weights: L factors, first layer first; their product is ε^L U_r̂ V_r̂ᵀ.

    Raises:
        ValueError: rank or depth out of range, eps not positive, non-finite surrogate.

    Example:
        >>> W = spectral_start(torch.diag(torch.tensor([3.0, 2.0, 1.0])), rank=2, depth=3, eps=0.1)
        >>> [tuple(w.shape) for w in W], (W[2] @ W[1] @ W[0]).diagonal().mul(1e3).round().abs().tolist()
        ([(2, 3), (2, 2), (3, 2)], [1.0, 1.0, 0.0])
    """
    require_count("depth", depth, low=2)
    require_positive("eps", eps)
    U, _, Vh = truncated_svd(surrogate, rank, method="exact")
    middle = [eps * torch.eye(rank, dtype=U.dtype, device=U.device) for _ in range(depth - 2)]
    return [eps * Vh, *middle, eps * U]
