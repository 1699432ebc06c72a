"""The subspaces in which gradient descent moves a deep linear network, read off its first gradient.

Weights W_L … W_1 start at ε times (semi-)orthogonal matrices. Then W_l(t) is block diagonal in fixed orthogonal bases,

    W_l(t) = [U_l1 U_l2] · blkdiag(W̃_l(t), ρ_l(t) I) · [V_l1 V_l2]ᵀ,     V_{l+1} = U_l = W_l(0) V_l / ε,

with a small moving block W̃_l (2r×2r, W̃_l(0) = ε I) and a bulk that at most shrinks. The bulk is the part of the input
that neither the signal S (m, n) of the first layer nor SᵀW_1(0) sees, so the moving part is the span of S's right
singular vectors and of W_1(0)ᵀ times its left ones. The overview's theorems (arXiv 2503.19859) differ in S and r:

    T1 classification (2306.01154)        S = ∇_{W_1} loss at the start             r = number of classes, l ≤ L−1
    T2 matrix factorisation (2406.04112)  S = −(W_L … W_2)ᵀ Φ, see below            r = rank Φ
    T4 matrix completion (2406.04112)     S = ∇_{W_1} of the masked loss            r ≥ rank Φ

T3 and T5, the small networks that follow from this, are in `chain`.

Cost: a rank-r SVD of S; the rest is m·n·r.
Paper: the code of T1 takes the top 2r right singular vectors of the stack [S; SᵀW_1]. For S of rank r that is the same
span; ours needs no balance between the two blocks, whose sizes differ by ε.
"""

import torch
from torch import Tensor

from eckart.linalg._check import require_finite, require_matrix, require_rank, working_dtype
from eckart.linalg.orthonormal import orthonormalize
from eckart.linalg.svd import truncated_svd


def invariant_subspace(
    signal: Tensor,  # (m, n)
    weight: Tensor,  # (m, n)
    rank: int,  # r
) -> Tensor:  # (n, 2r)
    """The input directions V_11 that move, from the first layer's signal and starting weight (T1, T2, T4).

    Args:
        signal: S of the table above. For T2 prefer `factorization_signal` to the gradient, which has full rank when ε
            is not tiny.
        weight: W_1(0), ε times a (semi-)orthogonal matrix.
        rank: r, the number of classes (T1) or the (assumed) rank of the target (T2, T4); 2r ≤ n.

    Returns:
        V: (n, 2r) orthonormal columns; their complement is the bulk. `complete` gives it.

    Raises:
        ValueError: shapes differ, 2r > n, or non-finite entries.

    Example:
        >>> signal = torch.zeros(4, 4)
        >>> signal[0, 1] = 1.0  # moves input 1 and, through the identity weight, output 0
        >>> V = invariant_subspace(signal, torch.eye(4), rank=1)
        >>> (V @ V.mT).diagonal().round().abs().tolist()
        [1.0, 1.0, 0.0, 0.0]
    """
    require_matrix("signal", signal)
    require_matrix("weight", weight)
    require_finite("weight", weight)
    if signal.shape != weight.shape:
        raise ValueError(f"signal {tuple(signal.shape)} and weight {tuple(weight.shape)} must have one shape")
    require_rank(rank, signal)
    if 2 * rank > signal.shape[-1]:
        limit = signal.shape[-1] // 2
        raise ValueError(f"rank must be at most n/2 = {limit} for signal {tuple(signal.shape)}, got {rank}")
    U, _, Vh = truncated_svd(signal, rank, method="exact")
    return orthonormalize(torch.cat((Vh.mT, weight.mT @ U), dim=-1))


def factorization_signal(
    weights: list[Tensor],  # W_1 (d1, n), …, W_L (m, d_{L-1})
    target: Tensor,  # Φ (m, n)
) -> Tensor:  # (d1, n)
    """The part −(W_L … W_2)ᵀ Φ of ∇_{W_1} ½‖W_L … W_1 − Φ‖² that comes from the target (T2).

    Args:
        weights: W_1(0), …, W_L(0), first layer first.
        target: Φ, or a surrogate of it.

    Returns:
        S: (d1, n), of the rank of Φ, to pass to `invariant_subspace`.

    Raises:
        ValueError: the shapes do not chain.

    Example:
        >>> W = 0.5 * torch.eye(2)
        >>> factorization_signal([W, W, W], torch.tensor([[8.0, 0.0], [0.0, 0.0]])).tolist()
        [[-2.0, 0.0], [0.0, 0.0]]
    """
    _require_chain(weights)
    if target.shape[-2:] != (weights[-1].shape[-2], weights[0].shape[-1]):
        raise ValueError(
            f"target {tuple(target.shape)} must have the shape of the product, "
            f"({weights[-1].shape[-2]}, {weights[0].shape[-1]})"
        )
    S = -target
    for W in reversed(weights[1:]):
        S = W.mT @ S
    return S


def complete(
    V: Tensor,  # (..., n, k) orthonormal
) -> Tensor:  # (..., n, n)
    """Complete orthonormal columns to a whole basis: V first, then its orthogonal complement (the bulk).

    Args:
        V: orthonormal columns.

    Returns:
        basis: (..., n, n), orthogonal; its first k columns are V itself.

    Example:
        >>> complete(torch.tensor([[1.0], [0.0]])).abs().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    require_matrix("V", V)
    require_finite("V", V)
    k = V.shape[-1]
    rest = torch.linalg.qr(V.to(working_dtype(V.dtype)), mode="complete").Q[..., k:]
    return torch.cat((V, rest.to(V.dtype)), dim=-1)


def propagate(
    weights: list[Tensor],  # W_1 (d1, n), …, W_L (m, d_{L-1})
    V: Tensor,  # (n, k)
    eps: float,
) -> list[tuple[Tensor, Tensor]]:  # [(U_l (d_l, k), V_l (d_{l-1}, k))]
    """Carry the first layer's basis through the layers: U_l = W_l(0) V_l / ε and V_{l+1} = U_l (T1, T2).

    Args:
        weights: W_1(0), …, first layer first, each ε times a (semi-)orthogonal matrix. For T1 leave out the last layer.
        V: basis of the first layer's input: the moving part (2r columns), or all of it from `complete`.
        eps: ε > 0.

    Returns:
        One pair (U_l, V_l) for each weight.

    Raises:
        ValueError: the shapes do not chain, or eps is not positive.

    Example:
        >>> swap = 0.1 * torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> [(U.flatten().tolist(), V.flatten().tolist()) for U, V in propagate([swap], torch.eye(2)[:, :1], 0.1)]
        [([0.0, 1.0], [1.0, 0.0])]
    """
    _require_chain(weights)
    require_positive("eps", eps)
    if V.shape[-2] != weights[0].shape[-1]:
        raise ValueError(f"V {tuple(V.shape)} must have {weights[0].shape[-1]} rows, as W_1 has columns")
    pairs = []
    for W in weights:
        U = W @ V / eps
        pairs.append((U, V))
        V = U
    return pairs


def require_positive(name: str, value: float) -> None:
    """Raise unless `value` > 0."""
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")


def _require_chain(weights: list[Tensor]) -> None:
    if not weights:
        raise ValueError("weights is empty; pass W_1, …, W_L, first layer first")
    for index, W in enumerate(weights):
        require_matrix(f"weights[{index}]", W)
        require_finite(f"weights[{index}]", W)
        if index and W.shape[-1] != weights[index - 1].shape[-2]:
            raise ValueError(
                f"weights[{index}] {tuple(W.shape)} cannot follow weights[{index - 1}] "
                f"{tuple(weights[index - 1].shape)}; order them first layer first"
            )
