"""The small network that follows a deep linear network all along its training, ready to be trained itself (T3).

W_1, …, W_L (d×d) start at ε times orthogonal matrices. All that moves lies in 2r̂ directions, so training

    left · W̃_L … W̃_1 · rightᵀ,     W̃_l(0) = ε I (2r̂×2r̂),  left, right (d×2r̂) fixed,

gives the same product up to the bulk that it leaves out, (Π ρ_l) U_L2 V_12ᵀ, at every step:

    ‖P(t) − P̃(t)‖_F = √(d − 2r̂) Π_l ρ_l(t) ≤ √(d − 2r̂) ε^L.

L d² parameters become L (2r̂)² + 4 d r̂. Any r̂ ≥ r works, r the rank of the target. Where the target is seen in part
(completion, T4), left and right train too, at a rate γη with a small γ.

Cost: an SVD of the d×d signal, once; then a step costs d²r̂ instead of L d³.
Paper: 2406.04112; none.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from eckart.linalg import compressed_chain, invariant_subspace


def compress(
    weights: Sequence[Tensor],  # W_1 (d, d), …, W_L (d, d)
    signal: Tensor,  # (d, d)
    *,
    rank: int,  # r̂
    eps: float,
) -> list[Tensor]:  # rightᵀ (2r̂, d), W̃_1 (2r̂, 2r̂), …, W̃_L (2r̂, 2r̂), left (d, 2r̂)
    """Make the small network of a large one, as weights that `descend` trains.

    Args:
        weights: W_1(0), …, W_L(0), each ε times an orthogonal matrix, from `orthogonal_weights`.
        signal: what moves the first layer: `linalg.factorization_signal(weights, target)` for a target that is wholly
            seen, `first_gradient(weights, slope)` for any other loss.
        rank: r̂, at least the rank of the target; 2 r̂ ≤ d.
        eps: ε of the weights.

    Returns:
        L + 2 weights, first layer first; `compressed_rates` gives their learning rates.

    Raises:
        ValueError: no weights, weights not square or not ε times orthogonal, signal of another shape, or rank out of
            range.

    Example:
        >>> from itertools import islice
        >>> from eckart.linalg import factorization_signal
        >>> from eckart.theory import descend, factorization, orthogonal_weights, product
        >>> target = torch.diag(torch.tensor([1.0, 0, 0, 0, 0, 0], dtype=torch.float64))
        >>> weights = orthogonal_weights([6, 6, 6, 6], 0.1)
        >>> small = compress(weights, factorization_signal(weights, target), rank=1, eps=0.1)
        >>> [tuple(W.shape) for W in small]
        [(2, 6), (2, 2), (2, 2), (2, 2), (6, 2)]
        >>> follow = descend(small, factorization(target), rate=compressed_rates(3, 0.1))
        >>> pairs = islice(zip(descend(weights, factorization(target), rate=0.1), follow), 200)
        >>> error = max((product(W) - product(V)).norm().item() for (W, _), (V, _) in pairs)
        >>> f"{error:.6f}, √(6 − 2) ε³ = {2 * 0.1**3:.6f}"
        '0.002000, √(6 − 2) ε³ = 0.002000'
    """
    if not weights or not eps > 0:
        raise ValueError(f"compress needs weights W_1, …, W_L and their eps > 0, got {len(weights)} and eps {eps}")
    for index, W in enumerate(weights):
        _require_orthogonal(f"weights[{index}]", W, eps)
    V = invariant_subspace(signal, weights[0], rank)
    left, inner, right = compressed_chain(list(weights), V, eps)
    return [right.mT, *inner, left]


def compressed_rates(
    depth: int,  # L
    rate: float,  # η
    outer: float = 0.0,  # γ
) -> list[float]:  # L + 2 rates
    """The discrepant learning rates of a compressed network: η inside, γη for the two outer factors.

    Args:
        depth: L, the number of layers of the large network.
        rate: η.
        outer: γ. 0 keeps left and right fixed (T3: all of the target is seen); completion needs a small one, 0.01 (T4).

    Returns:
        One rate for each weight of `compress`.

    Raises:
        ValueError: outer is negative.

    Example:
        >>> compressed_rates(3, 10.0, outer=0.01)
        [0.1, 10.0, 10.0, 10.0, 0.1]
    """
    if not outer >= 0:
        raise ValueError(f"outer is the share γ ≥ 0 of the rate that the outer factors get, got {outer}")
    return [outer * rate, *[rate] * depth, outer * rate]


def trajectory_error(
    bulk: Tensor,  # (..., L)
    *,
    size: int,  # d
    rank: int,  # r̂
) -> Tensor:  # (...)
    """What the small network leaves out: ‖P(t) − P̃(t)‖_F = √(d − 2r̂) Π_l ρ_l(t).

    Args:
        bulk: ρ_1, …, ρ_L, one or a whole course of them, as `factorization_bulk` gives it.
        size: d.
        rank: r̂ of the compression.

    Returns:
        The error, in the units of the product.

    Raises:
        ValueError: 2 r̂ > d.

    Example:
        >>> bulk = torch.tensor([[0.1, 0.1, 0.1], [0.1, 0.1, 0.05]])  # at two times
        >>> [f"{error:.4f}" for error in trajectory_error(bulk, size=20, rank=2).tolist()]
        ['0.0040', '0.0020']
    """
    if not 0 <= 2 * rank <= size:
        raise ValueError(f"rank must be from 0 to size/2 = {size // 2}, got {rank}")
    return (size - 2 * rank) ** 0.5 * bulk.prod(dim=-1).abs()


def parameter_counts(
    size: int,  # d
    depth: int,  # L
    rank: int,  # r̂
) -> tuple[int, int]:
    """Parameters of the large network, L d², and of its small one, L (2r̂)² + 4 d r̂.

    Args:
        size: d.
        depth: L.
        rank: r̂.

    Returns:
        large, small.

    Example:
        >>> parameter_counts(100, 3, 5)
        (30000, 2300)
    """
    return depth * size**2, depth * (2 * rank) ** 2 + 4 * size * rank


def _require_orthogonal(name: str, W: Tensor, eps: float) -> None:
    """Raise unless `W` is square and ε times an orthogonal matrix: otherwise the small network follows nothing."""
    if W.ndim != 2 or W.shape[0] != W.shape[1]:
        raise ValueError(f"{name} {tuple(W.shape)} must be square; pad a target that isn't with zero rows or columns")
    identity = torch.eye(len(W), dtype=W.dtype, device=W.device)
    deviation = (W @ W.mT / eps**2 - identity).abs().max().item()
    if not deviation < torch.finfo(W.dtype).eps ** 0.5:
        raise ValueError(
            f"{name} {tuple(W.shape)} is not eps = {eps} times an orthogonal matrix (W Wᵀ/ε² is {deviation:.1e} off "
            f"the identity); start from orthogonal_weights(widths, eps)"
        )
