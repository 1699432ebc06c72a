"""The global optimum of two linear layers under dropout or DropBlock, in closed form, with factors that attain it.

    min over U (m, d), V (n, d) of   ‖Y − U VᵀX‖² + c Σ_b ‖U_b V_bᵀ X‖²,        c = rate/(1 − rate)

in B = d/k blocks of k columns (dropout: k = 1). The least penalty of all factors with UVᵀX = Z is (c/B)(‖Z‖_k^{sp})²,
the squared k-support norm of Z's spectrum (nuclear for k = 1), so Z is its proximal map at Y, or at Y's part in the row
space of X. For k = 1 that is thresholding,

    σ_i(Z) = (σ_i(Y) − μ)_+,   μ = λ Σ_{i≤ρ} σ_i(Y)/(1 + λρ),   λ = c/d,   ρ the largest with σ_ρ(Y) > μ.

At a fixed rate λ = c/d vanishes with the width; at `adaptive_rate(rate, d)` it is rate/(1 − rate) at every width.
Each block carries 1/B of the norm: ‖U_bV_bᵀX‖ are equal, and the factors come from `frames`. For k = 1 they always
exist. For k > 1 and few blocks they may not; then (c/B)(‖Z‖_k^{sp})² is only a lower bound, and we raise.

Cost: one SVD of X and one of Y, in float64.
Paper: arXiv 1710.05092 (d ≥ rank; below it, Y's first d singular values take Y's place), 1806.09777 (equalised
factors), 1910.14186 (DropBlock, where the number of blocks is free: a given number may be too few, see above).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from eckart.linalg import prox_vector_k_support_squared, truncated_svd, vector_k_support_norm
from eckart.regularizers.frames import equal_frames
from eckart.regularizers.rates import odds, require_block


class Optimum(NamedTuple):
    """A global optimum: factors, the spectrum of UVᵀX, and the objective there.

    Args:
        U: (m, d).
        V: (n, d).
        singular_values: of UVᵀX, float64, as many as can be non-zero.
        objective: ‖Y − UVᵀX‖² + penalty.
    """

    U: Tensor
    V: Tensor
    singular_values: Tensor
    objective: float


def dropout_optimum(
    target: Tensor,  # Y (m, N)
    width: int,  # d
    rate: float,
    *,
    inputs: Tensor | None = None,  # X (n, N)
) -> Optimum:
    """The best two linear layers of a given width under dropout: squared nuclear norm with weight c/d, equalised.

    Args:
        target: Y; with inputs None, the matrix to factorise.
        width: number d of hidden columns, any.
        rate: share dropped, in [0, 1). `adaptive_rate(rate, width)` gives the optimum that does not depend on width.
        inputs: X, a sample in each column; None for the identity. Rank-deficient X is fine: V stays in its range.

    Returns:
        Optimum: U and V in Y's dtype with all ‖u_i‖‖Xᵀv_i‖ equal; the spectrum of UVᵀX and the objective.

    Raises:
        ValueError: rate outside [0, 1), width below 1, or shapes that do not fit.

    Example:
        >>> import torch
        >>> best = dropout_optimum(torch.tensor([3.0, 1.0]).double().diag(), width=4, rate=0.5)
        >>> best.singular_values.round(decimals=4).tolist(), round(best.objective, 4)  # μ = ¼·4/(1 + ¼·2) = 2/3
        ([2.3333, 0.3333], 2.6667)
        >>> (best.U.norm(dim=0) * best.V.norm(dim=0)).round(decimals=4).tolist()
        [0.6667, 0.6667, 0.6667, 0.6667]
    """
    return dropblock_optimum(target, width, rate, 1, inputs=inputs)


def dropblock_optimum(
    target: Tensor,  # Y (m, N)
    width: int,  # d
    rate: float,
    block: int,  # k
    *,
    inputs: Tensor | None = None,  # X (n, N)
) -> Optimum:
    """The best two linear layers of a given width under DropBlock: squared k-support norm with weight c/B.

    Args:
        target: Y; with inputs None, the matrix to factorise.
        width: number d of hidden columns, a multiple of block.
        rate: share of the blocks that is dropped, in [0, 1).
        block: columns k in a block.
        inputs: X, a sample in each column; None for the identity.

    Returns:
        Optimum: U and V in Y's dtype with all ‖U_bV_bᵀX‖ equal; the spectrum of UVᵀX and the objective.

    Raises:
        ValueError: rate, width or block out of range, shapes that do not fit, or too few blocks for this spectrum to
            be shared equally among them (the message gives the bound that holds nevertheless).

    Example:
        >>> import torch
        >>> best = dropblock_optimum(2 * torch.eye(4), width=8, rate=0.5, block=2)  # λ = 1/4, flat: ‖Z‖_*²/k
        >>> [round(value, 4) for value in best.singular_values.tolist()]  # 2/(1 + 2λ)
        [1.3333, 1.3333, 1.3333, 1.3333]
    """
    require_block(block, width)
    blocks = width // block
    if blocks < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    Y, lift = _whiten(target.double(), inputs)
    P, S, Qh = truncated_svd(Y, min(width, *Y.shape), method="exact")
    k = min(block, len(S))
    step = odds(rate) / blocks
    values = prox_vector_k_support_squared(S, k, step)
    missed = target.double().square().sum() - S.square().sum() + (S - values).square().sum()
    objective = float(missed + step * vector_k_support_norm(values, k).square())
    factor = _shares(values, blocks, k, objective)  # (B, r, k)
    factor = F.pad(factor, (0, block - k)).transpose(0, 1).flatten(1)  # (r, d)
    return Optimum((P @ factor).to(target.dtype), (lift @ Qh.mT @ factor).to(target.dtype), values, objective)


def _whiten(Y: Tensor, inputs: Tensor | None) -> tuple[Tensor, Tensor]:  # (m, r), (n, r)
    """Y in an orthonormal basis Q of X's row space, and the map that turns factors there into V: VᵀX = (lift⁻¹V)ᵀQᵀ."""
    if Y.ndim != 2 or (inputs is not None and (inputs.ndim != 2 or inputs.shape[1] != Y.shape[1])):
        shape = None if inputs is None else tuple(inputs.shape)
        raise ValueError(
            f"target {tuple(Y.shape)} and inputs {shape} must be (m, N) and (n, N), a sample in each column"
        )
    if inputs is None:
        return Y, torch.eye(Y.shape[1], dtype=Y.dtype, device=Y.device)
    X = inputs.double()
    P, S, Qh = truncated_svd(X, min(X.shape), method="exact")
    seen = _rounding(X, inputs.dtype, S[0]) < S
    if not seen.any():  # X is zero: no factor has a say
        return torch.zeros_like(Y[:, :1]), torch.zeros_like(X[:, :1])
    return Y @ Qh[seen].mT, P[:, seen] / S[seen]


def _rounding(X: Tensor, dtype: torch.dtype, largest: Tensor) -> Tensor:  # ()
    """How large a singular value may be by rounding alone: of X's entries in `dtype`, or of the SVD in float64.

    Independent errors of size e in the entries of X (n, N) have a spectral norm of e(√n + √N), which does not outgrow
    X's own values however many samples there are, as the usual σ₁·max(n, N)·ε does.
    """
    eps = torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
    entries = 4 * eps * X.norm() * sum(size**-0.5 for size in X.shape)
    return torch.maximum(entries, largest * max(X.shape) * torch.finfo(torch.float64).eps)


def _shares(values: Tensor, blocks: int, k: int, bound: float) -> Tensor:  # (B, r, k)
    """Factors F_b with Σ_b F_b F_bᵀ = diag(values) and all ‖F_b F_bᵀ‖ equal, of which there must be B."""
    shares = values.new_zeros(blocks, len(values), k)
    live = int((values > 1e-12 * values[:1]).sum())
    if not live:
        return shares
    k = min(k, live)
    values = values[:live]
    head = next(h for h in range(k) if (k - h) * values[h] <= values[h:].sum() * (1 + 1e-12))
    level = values[head:].sum() / (k - head)  # θ_i = values_i / level in the tail, 1 in the head
    frames = equal_frames(blocks * values[head:] / level, blocks, k - head)
    if frames is None:
        raise ValueError(
            f"found no way for {blocks} blocks of {k} columns to share the optimum's {live} singular values equally; "
            f"give more blocks (a larger width). No factors of this width have an objective below {bound:.6g}"
        )
    torch.diagonal(shares[:, :head, :head], dim1=-2, dim2=-1).copy_((values[:head] / blocks).sqrt())
    shares[:, head:live, head:k] = frames * (level / blocks).sqrt()
    return shares
