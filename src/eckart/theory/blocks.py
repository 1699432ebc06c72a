"""The block form in which a deep linear network stays while it trains, and how its bulk moves (T1, T2).

Started at ε_l times (semi-)orthogonal matrices, each layer is, at every step of gradient descent,

    W_l(t) = U_l · blkdiag(W̃_l(t), ρ_l(t) I) · V_lᵀ,     V_{l+1} = U_l = W_l(0) V_l / ε_l,     W̃_l (2r×2r),

in bases that never change. The two theorems differ in the bulk:

    T1 classification (2306.01154)        whitened data, r classes, W_L has r rows and annihilates the bulk:
                                          ρ(t+1) = ρ(t) (1 − ηλ), for the layers l < L
    T2 matrix factorisation (2406.04112)  all layers d×d, target of rank r:
                                          ρ_l(t+1) = ρ_l(t) (1 − ηλ − η Π_{k≠l} ρ_k(t)²)

Cost: d³ for the bases, once; d³ to look at one layer.
Paper: T2 is stated for one ε; layers of different scales have one ρ_l each, which is the same proof.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eckart.linalg import complete, invariant_subspace, propagate


class Block(NamedTuple):
    """One layer in its bases: the block that moves, the bulk, and how far both are from what the theorem says."""

    moving: Tensor  # W̃ (2r, 2r)
    bulk: Tensor  # (), ρ: the mean of the bulk block's diagonal
    leak: Tensor  # (), the largest entry, in size, of the two off-diagonal blocks
    spread: Tensor  # (), the largest entry, in size, of the bulk block − ρ I


def moving_bases(
    weights: Sequence[Tensor],  # W_1 (d_1, d_0), …, W_L (d_L, d_{L−1})
    signal: Tensor,  # (d_1, d_0)
    rank: int,  # r
) -> list[tuple[Tensor, Tensor]]:  # [(U_l (d_l, d_0), V_l (d_{l−1}, d_0))]
    """The bases U_l, V_l of each layer, from the start; their first 2r columns are the directions that move.

    Args:
        weights: W_1(0), …, first layer first, each some scale times a (semi-)orthogonal matrix; the scales may differ.
            For a classifier (T1) leave out the last layer.
        signal: S of the first layer: `first_gradient(weights, slope)`, all layers in, for a classifier (T1), and
            `linalg.factorization_signal(weights, target)` for a factorisation (T2).
        rank: r, the number of classes or the rank of the target; 2r ≤ d_0.

    Returns:
        One pair (U_l, V_l) for each weight.

    Raises:
        ValueError: shapes do not chain, or rank is out of range.

    Example:
        >>> swap = torch.tensor([[0.0, 0.5, 0, 0], [0.5, 0, 0, 0], [0, 0, 0, 0.5], [0, 0, 0.5, 0]])
        >>> signal = torch.zeros(4, 4)
        >>> signal[3, 2] = 1.0  # moves input 2, and output 3, which the first layer reads from input 2
        >>> [(U, V)] = moving_bases([swap], signal, rank=1)
        >>> V[:, 0].abs().tolist(), U[:, 0].abs().tolist()
        ([0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0])
    """
    basis = complete(invariant_subspace(signal, weights[0], rank))
    units = [W / (torch.linalg.norm(W) / min(W.shape) ** 0.5) for W in weights]  # W / ε_l
    return propagate(units, basis, 1.0)


def block_form(
    W: Tensor,  # (m, n)
    U: Tensor,  # (m, k)
    V: Tensor,  # (n, k)
    width: int,  # 2r
) -> Block:
    """Look at a layer in its bases: Uᵀ W V in four blocks.

    Args:
        W: the layer at some t.
        U, V: its bases, from `moving_bases`.
        width: 2r, how many of their leading columns move.

    Returns:
        The block form. Exactly invariant means `leak` and `spread` at rounding.

    Raises:
        ValueError: width is not from 1 to k − 1: there must be a block and a bulk.

    Example:
        >>> W = torch.tensor([[3.0, 0.0, 0.2], [0.0, 0.4, 0.0], [0.0, 0.0, 0.6]])
        >>> moving, bulk, leak, spread = block_form(W, torch.eye(3), torch.eye(3), width=1)
        >>> [round(number.item(), 4) for number in (moving[0, 0], bulk, leak, spread)]
        [3.0, 0.5, 0.2, 0.1]
    """
    if not 0 < width < V.shape[-1]:
        raise ValueError(f"width must be from 1 to {V.shape[-1] - 1} for bases of {V.shape[-1]} columns, got {width}")
    M = U.mT @ W @ V
    rest = M[width:, width:]
    bulk = rest.diagonal().mean()
    leak = torch.maximum(M[:width, width:].abs().max(), M[width:, :width].abs().max())
    return Block(M[:width, :width], bulk, leak, (rest - bulk * torch.eye(len(rest)).to(rest)).abs().max())


def classification_bulk(
    start: float,  # ε
    steps: int,
    *,
    rate: float,
    decay: float = 0.0,
) -> Tensor:  # (steps + 1,) float64
    """The bulk of every layer but the last of a classifier: ρ(t) = ε (1 − ηλ)^t (T1).

    Args:
        start: ε.
        steps: how many steps of gradient descent.
        rate: η.
        decay: λ; without it the bulk never moves.

    Returns:
        ρ(0), …, ρ(steps).

    Example:
        >>> classification_bulk(1.0, 3, rate=0.5, decay=0.2).tolist()
        [1.0, 0.9, 0.81, 0.7290000000000001]
    """
    return start * (1 - rate * decay) ** torch.arange(steps + 1, dtype=torch.float64)


def factorization_bulk(
    start: Sequence[float],  # ε_1, …, ε_L
    steps: int,
    *,
    rate: float,
    decay: float = 0.0,
) -> Tensor:  # (steps + 1, L) float64
    """The bulk of every layer of a factorisation: ρ_l(t+1) = ρ_l(t) (1 − ηλ − η Π_{k≠l} ρ_k(t)²) (T2).

    Args:
        start: ε_l, the scale of each layer.
        steps: how many steps of gradient descent.
        rate: η.
        decay: λ.

    Returns:
        ρ(0), …, ρ(steps), a column for each layer.

    Example:
        >>> factorization_bulk([1.0, 0.5], 1, rate=0.1).tolist()
        [[1.0, 0.5], [0.975, 0.45]]
    """
    rho = torch.tensor(start, dtype=torch.float64)
    course = [rho]
    for _ in range(steps):
        others = torch.stack([torch.cat((rho[:k], rho[k + 1 :])).prod() for k in range(len(start))])
        rho = rho * (1 - rate * decay - rate * others.square())
        course.append(rho)
    return torch.stack(course)
