"""What is nearly invariant when a two-layer nonlinear network trains: the 2K directions of its first layer (T6).

The network W_2 φ(W_1 X) with K outputs, W_2 fixed, loss ½‖W_2 φ(W_1 X) − Y‖², X whitened, W_1(0) = ε times orthogonal:

    G_1 = [φ'(W_1 X) ∘ W_2ᵀ(W_2 φ(W_1 X) − Y)] Xᵀ = φ'(0) W_2ᵀ(… − Y) Xᵀ + what φ' varies over the entries of W_1 X.

The first term has rank K. For smooth φ the second is of order ε^k, with φ^{(k+1)}(0) the first derivative after φ'(0)
that is not zero: σ_{K+1}/σ_1 of G_1(0) falls like ε for GELU and SiLU, like ε² for tanh. For ReLU φ' jumps at 0 and the
ratio is the same at every ε. Along the way the update W_1(t) − W_1(0) stays near the block U D Vᵀ,

    U = span{U_K, W_1(0) V_K},  V = span{V_K, W_1(0)ᵀ U_K},    U_K, V_K: leading singular vectors of G_1(0).

With W_2 fixed U_K and V_K alone do nearly as well: linearised, G_1 stays in the span of W_2's rows on the left and of
the rows of (W_2 φ(W_1 X) − Y) Xᵀ at the start on the right. Nothing is exactly invariant: the theorem bounds each step
outside the block, under conditions (smooth φ with φ(0) = 0, a bounded residual, an assumed decay of the gradient) that
hold only while the entries of W_1 X are small. So measure:
`energy_outside` says how much has left.

Cost: as a step of backpropagation; two rank-K SVDs for the block.
Paper: 2602.06208. Its basis of the bulk is the complement of ours on the right, and leaves the left side wider than 2K
when m > n; ours is 2K on both sides, the stricter. Its low-rank MLP is narrow and deep; `low_rank_start` factors one
layer and keeps the width that φ sees, so that it fits a layer of any network.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from eckart.linalg import invariant_subspace, singular_values
from eckart.theory.descent import Slope

Activation = Callable[[Tensor], Tensor]


def nonlinear_regression(
    outer: Tensor,  # W_2 (K, m)
    inputs: Tensor,  # X (n, N)
    targets: Tensor,  # Y (K, N)
    activation: Activation,
) -> Slope:
    """The loss ½‖W_2 φ(W_1 X) − Y‖² as a function of W_1, for `descend`.

    Args:
        outer: W_2, which stays.
        inputs: X, a sample in each column; `whiten` it for T6.
        targets: Y, likewise.
        activation: φ, any function of torch that autograd can follow, entry by entry.

    Returns:
        The slope W_1 → (loss, G_1). W_1 may be a product that `descend` trains: `descend([W_1], slope, …)` trains the
        whole layer, `descend(low_rank_start(…), slope, …)` its low-rank form.

    Raises:
        ValueError: shapes of outer, inputs and targets do not fit.

    Example:
        >>> one = torch.ones(1, 1)
        >>> loss, G = nonlinear_regression(2 * one, one, 3 * one, torch.square)(0.5 * one)
        >>> loss.item(), G.item()  # ½(2·0.25 − 3)², (2·0.25 − 3)·2·2·0.5
        (3.125, -5.0)
    """
    if targets.shape != (outer.shape[0], inputs.shape[1]):
        raise ValueError(
            f"targets {tuple(targets.shape)} must be (K, N) = {(outer.shape[0], inputs.shape[1])}: a row for each row "
            f"of outer {tuple(outer.shape)}, a column for each sample of inputs {tuple(inputs.shape)}"
        )

    def slope(W: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            Z = (W @ inputs).detach().requires_grad_()
            loss = (outer @ activation(Z) - targets).square().sum() / 2
            (slopes,) = torch.autograd.grad(loss, Z)
        return loss.detach(), slopes @ inputs.mT

    return slope


def tail_ratio(
    gradient: Tensor,  # G (m, n)
    rank: int,  # K
) -> Tensor:  # ()
    """How far a gradient is from rank K: σ_{K+1} / σ_1.

    Args:
        gradient: G_1(0).
        rank: K, the number of outputs; below min(m, n).

    Returns:
        The ratio, from 0 to 1; 0 for a zero gradient.

    Raises:
        ValueError: rank out of range, or non-finite entries.

    Example:
        >>> tail_ratio(torch.diag(torch.tensor([4.0, 2.0, 1.0])), rank=2).item()
        0.25
    """
    if not 1 <= rank < min(gradient.shape):
        raise ValueError(f"rank must be from 1 to {min(gradient.shape) - 1} for {tuple(gradient.shape)}, got {rank}")
    S = singular_values(gradient)
    return S[rank] / S[0] if S[0] > 0 else S[0]


def moving_block(
    gradient: Tensor,  # G_1(0) (m, n)
    weight: Tensor,  # W_1(0) (m, n)
    rank: int,  # K
) -> tuple[Tensor, Tensor]:  # (m, 2K), (n, 2K)
    """The 2K directions on either side in which a layer is going to move, from its start and first gradient.

    Args:
        gradient: of the layer, before the first step.
        weight: the layer, before the first step.
        rank: K, the number of outputs; 2K ≤ min(m, n).

    Returns:
        U: orthonormal columns, the output directions U_K and W_1(0) V_K.
        V: orthonormal columns, the input directions V_K and W_1(0)ᵀ U_K.

    Raises:
        ValueError: shapes differ, 2K > min(m, n), or non-finite entries.

    Example:
        >>> G = torch.zeros(5, 4)
        >>> G[0, 1] = 1.0
        >>> U, V = moving_block(G, torch.eye(5, 4), rank=1)
        >>> (U @ U.mT).diagonal().round().abs().tolist(), (V @ V.mT).diagonal().round().abs().tolist()
        ([1.0, 1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0])
    """
    if gradient.shape != weight.shape or not 2 <= 2 * rank <= min(gradient.shape):
        raise ValueError(
            f"gradient {tuple(gradient.shape)} and weight {tuple(weight.shape)} must have one shape, with both sides "
            f"at least 2K = {2 * rank} for rank K = {rank} ≥ 1"
        )
    return invariant_subspace(gradient.mT, weight.mT, rank), invariant_subspace(gradient, weight, rank)


def energy_outside(
    update: Tensor,  # D (m, n)
    left: Tensor,  # U (m, k)
    right: Tensor,  # V (n, k)
) -> Tensor:  # ()
    """The share of an update's energy that lies outside a block: ‖D − U UᵀD V Vᵀ‖² / ‖D‖².

    Args:
        update: D = W(t) − W(0), or one step.
        left, right: orthonormal columns, from `moving_block`.

    Returns:
        The share, from 0 to 1; 0 for a zero update.

    Example:
        >>> D = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> first = torch.tensor([[1.0], [0.0]])
        >>> round(energy_outside(D, first, first).item(), 6)
        0.1
    """
    outside = update - left @ (left.mT @ update @ right) @ right.mT
    total = update.square().sum()
    return torch.where(total > 0, outside.square().sum() / total, total)


def low_rank_start(
    gradient: Tensor,  # G (m, n)
    weight: Tensor,  # W(0) (m, n)
    rank: int,  # K
) -> list[Tensor]:  # Vᵀ (2K, n), W̃ (2K, 2K), U (m, 2K)
    """A layer of rank 2K that starts in the block in which the whole layer would move: W ≈ U W̃ Vᵀ, W̃ = UᵀW(0)V.

    All three train. The outer two want a smaller rate, γη with γ about 0.001 (`compressed_rates(1, η, outer=γ)`), since
    W̃ grows and the gradient of U and V grows with it; γ = 0 keeps the block as it is.

    Args:
        gradient: of the layer at the start, from one batch or all data.
        weight: the layer at the start. What of it lies outside the block is dropped: little, when it starts small.
        rank: K, the number of outputs (classes); 2K ≤ min(m, n).

    Returns:
        Plain weights, first applied first; `product` multiplies them out.

    Raises:
        ValueError: shapes differ, 2K > min(m, n), or non-finite entries.

    Example:
        >>> from eckart.theory import product
        >>> G = torch.zeros(5, 4)
        >>> G[0, 1] = 1.0
        >>> weights = low_rank_start(G, torch.eye(5, 4), rank=1)
        >>> [tuple(W.shape) for W in weights], product(weights).diagonal().round().abs().tolist()
        ([(2, 4), (2, 2), (5, 2)], [1.0, 1.0, 0.0, 0.0])
    """
    U, V = moving_block(gradient, weight, rank)
    return [V.mT.contiguous(), U.mT @ weight @ V, U]
