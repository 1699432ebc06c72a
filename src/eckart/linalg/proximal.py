"""Proximal maps of spectral penalties: argmin_X ½‖X − W‖_F² + penalty(X).

Every penalty here depends on the singular values alone, so the map keeps W's singular vectors and acts on σ:

    step · ‖X‖_*            σ ↦ (σ − step)_+, singular value thresholding (Cai, Candès, Shen, arXiv 0810.3286)
    step · ‖X‖_{S_p}^p      σ ↦ argmin_s ½(s − σ)² + step·s^p, the global minimiser (weight decay on L layers: p = 2/L)
    ½ step · (‖X‖_k^{sp})²  the same of the k-support norm of σ (dropout: k = 1; DropBlock with blocks of width k: k)

The last two act on vectors in `proximal_vector`.

Cost: one SVD.
Paper: none.
"""

from collections.abc import Callable

from torch import Tensor

from eckart.linalg._check import require_matrix, require_rank, working_dtype
from eckart.linalg.proximal_vector import prox_power, prox_vector_k_support_squared, require_step
from eckart.linalg.svd import truncated_svd


def prox_nuclear(
    W: Tensor,  # (..., m, n)
    step: float,
) -> Tensor:  # (..., m, n)
    """argmin_X ½‖X − W‖_F² + step·‖X‖_*: every singular value shrinks by `step`, the small ones to 0.

    Args:
        W: matrix or batch of matrices.
        step: weight of the penalty, ≥ 0.

    Returns:
        X: in W's dtype.

    Raises:
        ValueError: step is negative, or W holds NaN or infinity.

    Example:
        >>> import torch
        >>> prox_nuclear(torch.diag(torch.tensor([3.0, 1.0])), 1.5).diagonal().tolist()
        [1.5, 0.0]
    """
    require_step(step)
    return _on_spectrum(W, lambda S: (S - step).clamp(min=0))


def prox_schatten(
    W: Tensor,  # (..., m, n)
    p: float,
    step: float,
) -> Tensor:  # (..., m, n)
    """argmin_X ½‖X − W‖_F² + step·Σσ_i(X)^p, the global minimiser, also for p < 1 where the penalty is not convex.

    Args:
        W: matrix or batch of matrices.
        p: exponent, 0 < p ≤ 2. p = 2/L with step = ½λL is weight decay λ on L layers.
        step: weight of the penalty, ≥ 0.

    Returns:
        X: in W's dtype.

    Raises:
        ValueError: p or step out of range, or W holds NaN or infinity.

    Example:
        >>> import torch
        >>> prox_schatten(torch.diag(torch.tensor([3.0, 0.2])), p=2 / 3, step=0.15).diagonal().tolist()
        [2.930116891860962, 0.0]
    """
    return _on_spectrum(W, lambda S: prox_power(S, p, step))


def prox_k_support_squared(
    W: Tensor,  # (..., m, n)
    k: int,
    step: float,
) -> Tensor:  # (..., m, n)
    """argmin_X ½‖X − W‖_F² + ½ step·(‖X‖_k^{sp})², exactly.

    Args:
        W: matrix or batch of matrices.
        k: from 1 (the squared nuclear norm) to min(m, n) (the squared Frobenius norm).
        step: weight of the penalty, ≥ 0.

    Returns:
        X: in W's dtype.

    Raises:
        ValueError: k or step out of range, or W holds NaN or infinity.

    Example:
        >>> import torch
        >>> prox_k_support_squared(torch.diag(torch.tensor([3.0, 0.5])), k=1, step=0.5).diagonal().tolist()
        [2.0, 0.0]
    """
    require_matrix("W", W)
    require_rank(k, W, "k")
    return _on_spectrum(W, lambda S: prox_vector_k_support_squared(S, k, step))


def _on_spectrum(W: Tensor, shrink: Callable[[Tensor], Tensor]) -> Tensor:
    """U shrink(S) Vh."""
    require_matrix("W", W)
    U, S, Vh = truncated_svd(W.to(working_dtype(W.dtype)), min(W.shape[-2:]), method="exact")
    return ((U * shrink(S).unsqueeze(-2)) @ Vh).to(W.dtype)
