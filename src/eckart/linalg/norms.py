"""Norms of a matrix's singular values: nuclear, Schatten-p and spectral k-support.

    ‖W‖_*       = Σ σ_i
    ‖W‖_{S_p}   = (Σ σ_i^p)^{1/p}, a quasi-norm for p < 1
    ‖W‖_k^{sp}  = √(Σ_{i<k−q} σ_i² + (Σ_{i≥k−q} σ_i)²/(q+1)); nuclear for k = 1, Frobenius for k = min(m, n)

The k-support norm (Argyriou, Foygel, Srebro, arXiv 1204.5043; of spectra: McDonald, Pontil, Stamos, arXiv 1403.1481) is
‖w‖_k² = min {Σ w_i²/θ_i : θ ∈ [0,1]^d, Σθ_i ≤ k}. The formula with any q ∈ [0, k) is the value at θ_i = 1 for the first
k−q−1 entries and θ_i ∝ w_i for the others, so the norm is the least of them over every q whose θ is feasible.

They come back in float64 and can be differentiated, as penalties in a loss: where W requires a gradient the spectrum
comes from an SVD that autograd follows, and ∂σ_i/∂W = u_i v_iᵀ. Zero values, where the norms have a kink, have the
gradient of a full U Vᵀ for p = 1 and zero for other p; the gradient of a norm at W = 0 is a subgradient for p ≥ 1.
For p < 1 the slope at σ = 0 is infinite and taken as zero. `proximal` has the proximal maps.

Cost: one spectrum.
Paper: the minimum over q replaces the search for the one q that satisfies two inequalities, which rounding can break.
"""

import math

import torch
from torch import Tensor

from eckart.linalg._check import require_count, require_finite, require_matrix, require_rank
from eckart.linalg.svd import singular_values


def nuclear_norm(
    W: Tensor,  # (..., m, n)
) -> Tensor:  # (...), float64
    """The nuclear norm ‖W‖_* = Σ σ_i, the least ½(‖U‖_F² + ‖V‖_F²) over all U Vᵀ = W.

    Args:
        W: matrix or batch of matrices.

    Returns:
        The norm, float64.

    Raises:
        ValueError: W holds NaN or infinity.

    Example:
        >>> nuclear_norm(torch.diag(torch.tensor([3.0, 2.0, -1.0]))).item()
        6.0
    """
    return _spectrum(W).sum(-1)


def schatten_norm(
    W: Tensor,  # (..., m, n)
    p: float,
) -> Tensor:  # (...), float64
    """The Schatten-p norm ‖W‖_{S_p} = (Σ σ_i^p)^{1/p}: p = 1 nuclear, 2 Frobenius, ∞ spectral.

    Args:
        W: matrix or batch of matrices.
        p: exponent > 0, `math.inf` allowed; a quasi-norm for p < 1 (L layers with weight decay give p = 2/L).

    Returns:
        The norm, float64.

    Raises:
        ValueError: p is not positive, or W holds NaN or infinity.

    Example:
        >>> W = torch.diag(torch.tensor([4.0, 1.0]))
        >>> schatten_norm(W, 0.5).item(), schatten_norm(W, float("inf")).item()
        (9.0, 4.0)
    """
    if not p > 0:
        raise ValueError(f"p must be positive, got {p}")
    S = _spectrum(W)
    if p == 1:
        return S.sum(-1)
    largest = S[..., :1]
    if math.isinf(p):
        return largest.squeeze(-1)
    unit = _nonzero(largest).detach()  # powers of numbers up to 1 do not overflow; any unit gives the same norm
    powers = torch.where(S > 0, _nonzero(S / unit).pow(p), 0.0).sum(-1)
    return torch.where(powers > 0, unit.squeeze(-1) * _nonzero(powers).pow(1 / p), 0.0)


def k_support_norm(
    W: Tensor,  # (..., m, n)
    k: int,
) -> Tensor:  # (...), float64
    """The spectral k-support norm: the k-support norm of the singular values.

    Its unit ball is the convex hull of the matrices of rank at most k and Frobenius norm at most 1.

    Args:
        W: matrix or batch of matrices.
        k: from 1 (nuclear norm) to min(m, n) (Frobenius norm).

    Returns:
        The norm, float64.

    Raises:
        ValueError: k out of range, or W holds NaN or infinity.

    Example:
        >>> k_support_norm(torch.eye(4), 2).item()  # a flat spectrum: ‖W‖_* / √k
        2.8284271247461903
    """
    require_matrix("W", W)
    require_rank(k, W, "k")
    return vector_k_support_norm(_spectrum(W), k)


def vector_k_support_norm(
    w: Tensor,  # (..., d)
    k: int,
) -> Tensor:  # (...), float64
    """The k-support norm of a vector: between ‖w‖_1 (k = 1) and ‖w‖_2 (k = d).

    Args:
        w: vector or batch of vectors, in any order and of any signs.
        k: from 1 to d.

    Returns:
        The norm, float64.

    Raises:
        ValueError: k out of range, or w holds NaN or infinity.

    Example:
        >>> vector_k_support_norm(torch.tensor([3.0, -1.0, 1.0]), 2).item() ** 2  # 3² + (1 + 1)²
        13.000000000000002
    """
    require_finite("w", w)
    require_k(k, w)
    w = w.abs().double().sort(dim=-1, descending=True).values
    unit = _nonzero(w[..., :1]).detach()
    w = w / unit
    zero = torch.zeros_like(unit)
    head = torch.cat((zero, w.square().cumsum(-1)), dim=-1)[..., :k].flip(-1)  # entry q: Σ_{i<k−q} w_i²
    tail = w.flip(-1).cumsum(-1).flip(-1)[..., :k].flip(-1)  # entry q: Σ_{i≥k−q} w_i
    size = torch.arange(1, k + 1, dtype=w.dtype, device=w.device)  # entry q: q + 1
    feasible = size * w[..., :k].flip(-1) <= tail * (1 + 1e-12)  # θ_{k−q} = (q+1) w_{k−q} / tail ≤ 1
    best = torch.where(feasible, head + tail.square() / size, math.inf).min(-1).values
    return torch.where(best > 0, unit.squeeze(-1) * _nonzero(best).sqrt(), 0.0)


def _spectrum(
    W: Tensor,  # (..., m, n)
) -> Tensor:  # (..., min(m, n)), float64
    """The singular values, by an SVD that autograd follows where W requires a gradient."""
    if not (W.requires_grad and torch.is_grad_enabled()):
        return singular_values(W)
    require_matrix("W", W)
    require_finite("W", W)
    return torch.linalg.svdvals(W.double())


def _nonzero(x: Tensor) -> Tensor:
    """x, and 1 where it is not positive: what a masked branch may divide by or take powers of."""
    return torch.where(x > 0, x, 1.0)


def require_k(k: int, w: Tensor) -> None:
    """Raise unless `k` is an integer from 1 to the length of `w` (..., d)."""
    require_count("k", k, low=1)
    if k > w.shape[-1]:
        raise ValueError(f"k must be from 1 to {w.shape[-1]} for w of shape {tuple(w.shape)}, got {k}")
