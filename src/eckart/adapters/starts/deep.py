"""Starts of Deep LoRA: every factor ε times an orthogonal matrix, so that P starts at ε³ = 1e-9, not at 0.

The compressed start follows T3 (`linalg.chain`). A deep network of full width starts at P = ε³ Q, Q (m, n) orthogonal,
and moves in the subspaces of one gradient ∇ = U Σ Vᵀ (r̂ of its directions): R = [V, QᵀU] at its input, L = Q R at its
output, W̃_l = ε I between them. Only these columns of Q are needed. We take a Q with QV ⊥ U, where V and QᵀU are
orthogonal already; then, for random Y and Z,

    R = [V, Z],  L = [Y, U],     Y (m, r̂) ⊥ U,  Z (n, r̂) ⊥ V

and nothing of size m×n is made but the gradient. For m ≠ n this Q is a partial isometry, so that L holds all of U and R
all of V, whichever side is longer.

P is not taken out of the start as other starts are, while ε³ ≤ 1e-8: that is less than float32 keeps of a weight, and a
frozen part would double the rank of every file and forward pass. With a larger ε it is taken out.

Paper: 2406.04112. Theirs draws Q whole, and for m ≠ n reads L or R off the longer side.
"""

import torch
from torch import Tensor

from eckart.adapters.shapes.deep import CompressedDeep, Deep
from eckart.adapters.starts.start import Look
from eckart.linalg import orthonormalize, truncated_svd

INVISIBLE = 1e-8


def orthogonal(adapter: Deep, look: Look) -> None:
    """W₁, W₂ and W₃: ε times random matrices with orthonormal rows or columns."""
    eps = _eps(look)
    for W in (adapter.W1, adapter.W2, adapter.W3):
        drawn = torch.randn(W.shape if W.shape[-2] >= W.shape[-1] else W.mT.shape, generator=look.generator)
        Q = orthonormalize(drawn)
        W.copy_(eps * (Q if Q.shape == W.shape else Q.mT))
    _take_out(adapter, eps)


def invariant(adapter: CompressedDeep, look: Look) -> None:
    """L and R from the gradient's leading directions, W̃ = ε I.

    Raises:
        ValueError: The loss does not depend on the matrix.
    """
    eps = _eps(look)
    if look.seen is None or look.seen.gradient is None:
        raise ValueError(
            f"targets: {look.matrix.name} has no gradient on these batches, and the start of this method needs one; "
            f"leave it out with exclude={look.matrix.name!r}"
        )
    half = adapter.rank // 2
    U, _, Vh = truncated_svd(look.seen.gradient, half, method="exact")
    Y, Z = _beside(U, look.generator), _beside(Vh.mT, look.generator)
    adapter.left.copy_(torch.cat((Y, U), dim=-1))
    adapter.right.copy_(torch.cat((Vh.mT, Z), dim=-1))
    for W in (adapter.W1, adapter.W2, adapter.W3):
        W.copy_((eps * torch.eye(adapter.rank)).expand(W.shape))
    _take_out(adapter, eps)


def _beside(U: Tensor, generator: torch.Generator) -> Tensor:  # (..., m, k) -> (..., m, k)
    """As many random orthonormal columns, orthogonal to U."""
    random = torch.randn(U.shape, generator=generator).to(U)
    return orthonormalize(torch.cat((U, random), dim=-1))[..., U.shape[-1] :]


def _eps(look: Look) -> float:
    eps = look.options["eps"]
    if not eps > 0:
        raise ValueError(f"eps: {eps!r}; the factors start at eps times orthogonal matrices, so give a number above 0")
    return eps


def _take_out(adapter: Deep | CompressedDeep, eps: float) -> None:
    if eps**3 > INVISIBLE:
        adapter.freeze(-1.0)
