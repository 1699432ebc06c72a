"""Weight decay on the factors of a product, and the spectral penalty on the product that it equals.

    min over W_L … W_1 = X of ½ Σ‖W_l‖²  =  ½ L Σ σ_i(X)^{2/L}  =  ½ L ‖X‖_{S_{2/L}}^{2/L}     (L = 2: ‖X‖_*)

so ½‖W_L … W_1 − Y‖² + ½λ Σ‖W_l‖² has the singular vectors of Y and, one value at a time,

    σ_i = argmin_s ½(s − σ_i(Y))² + ½λL s^{2/L}        L = 2: (σ_i(Y) − λ)_+;  L ≥ 3: 0 up to a jump

The best factors are balanced, W_{l+1}ᵀW_{l+1} = W_lW_lᵀ. For L ≥ 3 the origin is a local minimum too, for any λ > 0:
gradient descent from a tiny start stays there. Hidden widths must be at least the rank of the optimum.

Cost: one SVD.
Paper: none (L = 2: Srebro, Rennie, Jaakkola, 2004; any L: Shang, Liu, Cheng, arXiv 1606.00668).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from eckart.linalg import prox_power, schatten_norm, truncated_svd, working_dtype


class DecayOptimum(NamedTuple):
    """The global minimum of a fit with weight decay on its factors."""

    values: Tensor  # (min(m, n),) singular values of the product, descending
    weights: list[Tensor]  # W_1 (k, n), k×k …, W_L (m, k): balanced factors, first layer first


def decay_penalty(
    weights: Sequence[Tensor],  # of any shapes
) -> Tensor:  # ()
    """Weight decay ½ Σ‖W_l‖² as a term of a loss.

    Args:
        weights: the factors, in any order.

    Returns:
        The penalty, differentiable.

    Raises:
        ValueError: there are no weights.

    Example:
        >>> decay_penalty([torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0], [2.0]])]).item()
        7.0
    """
    if not weights:
        raise ValueError("weights is empty; give at least one factor")
    return sum((W.square().sum() for W in weights[1:]), weights[0].square().sum()) / 2


def least_decay(
    X: Tensor,  # (..., m, n)
    depth: int,  # L
) -> Tensor:  # (...), float64
    """The least ½ Σ‖W_l‖² over all factorisations X = W_L … W_1: what weight decay on L layers costs the product.

    Args:
        X: the product.
        depth: number of factors L ≥ 1.

    Returns:
        ½ L Σ σ_i^{2/L}, float64 and differentiable: ½‖X‖_F² for one layer, ‖X‖_* for two.

    Raises:
        ValueError: depth below 1, or X holds NaN or infinity.

    Example:
        >>> X = torch.diag(torch.tensor([8.0, 1.0]))
        >>> [round(least_decay(X, depth).item(), 4) for depth in (1, 2, 3)]
        [32.5, 9.0, 7.5]
    """
    _require_depth(depth)
    p = 2 / depth
    return schatten_norm(X, p).pow(p) / p


def decay_optimum(
    target: Tensor,  # Y (m, n)
    depth: int,  # L
    decay: float,  # λ
) -> DecayOptimum:
    """The global minimum of ½‖W_L … W_1 − Y‖² + ½λ Σ‖W_l‖², in closed form.

    Args:
        target: Y.
        depth: number of layers L ≥ 1; 2 shrinks every singular value by λ, more kill small ones and spare large ones.
        decay: λ ≥ 0.

    Returns:
        The singular values of the product, and balanced factors that attain it, first layer first, of width min(m, n).

    Raises:
        ValueError: depth below 1, decay negative, or a target that is no matrix or not finite.

    Example:
        >>> Y = torch.diag(torch.tensor([3.0, 2.0, 0.2]))
        >>> [[round(s, 4) for s in decay_optimum(Y, depth, 0.1).values.tolist()] for depth in (1, 2, 3)]
        [[2.7273, 1.8182, 0.1818], [2.9, 1.9, 0.1], [2.9301, 1.9195, 0.0]]
        >>> W1, W2 = decay_optimum(Y, 2, 0.1).weights
        >>> (W2 @ W1).diagonal().round(decimals=4).tolist()
        [2.9000000953674316, 1.899999976158142, 0.10000000149011612]
    """
    _require_depth(depth)
    if target.ndim != 2:
        raise ValueError(f"target must be one matrix (m, n), got shape {tuple(target.shape)}")
    if not decay >= 0:
        raise ValueError(f"decay must not be negative, got {decay}")
    U, S, Vh = truncated_svd(target.to(working_dtype(target.dtype)), min(target.shape), method="exact")
    values = prox_power(S, 2 / depth, depth * decay / 2)
    if depth == 1:
        return DecayOptimum(values, [(U * values @ Vh).to(target.dtype)])
    root = values.pow(1 / depth)
    weights = [root[:, None] * Vh, *(torch.diag(root) for _ in range(depth - 2)), U * root]
    return DecayOptimum(values, [W.to(target.dtype) for W in weights])


def imbalance(
    weights: Sequence[Tensor],  # W_1 (d_1, d_0), …, W_L (d_L, d_{L−1})
) -> Tensor:  # (L − 1,)
    """How far neighbouring layers are from balance, ‖W_{l+1}ᵀW_{l+1} − W_lW_lᵀ‖_F.

    Gradient flow on any loss of the product keeps it, and decays it as e^{−2λt} with weight decay λ.

    Args:
        weights: factors, first layer first.

    Returns:
        One number for each pair of neighbours, 0 at the optimum of weight decay.

    Raises:
        ValueError: fewer than two factors, or factors that do not chain.

    Example:
        >>> imbalance([torch.tensor([[2.0], [0.0]]), torch.tensor([[1.0, 0.0]])]).tolist()
        [3.0]
    """
    if len(weights) < 2 or any(lower.shape[0] != upper.shape[1] for lower, upper in pairwise(weights)):
        raise ValueError(
            f"weights must be at least two factors W_1 (d_1, d_0), W_2 (d_2, d_1), …, first layer first, "
            f"got shapes {[tuple(W.shape) for W in weights]}"
        )
    return torch.stack([torch.linalg.norm(upper.mT @ upper - lower @ lower.mT) for lower, upper in pairwise(weights)])


def _require_depth(depth: int) -> None:
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise ValueError(f"depth, the number of layers, must be an integer of at least 1, got {depth!r}")
