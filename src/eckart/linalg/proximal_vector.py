"""Proximal maps of vectors: powers |x|^p with their global minimiser, and the squared k-support norm.

For p < 1 the scalar problem ½(s − x)² + step·s^p has a second local minimum at 0. The two tie at
x₀ = s₀ + step·p·s₀^{p−1}, s₀ = (2 step (1−p))^{1/(2−p)}: up to x₀ the minimiser is 0, above it the largest root of
s + step·p·s^{p−1} = x.

With ‖x‖_k² = min {Σ x_i²/θ_i : θ ∈ [0,1]^d, Σθ_i ≤ k} the map of ½ step·‖x‖_k² is x_i = θ_i w_i/(θ_i + step), where θ
minimises Σ w_i²/(θ_i + step): θ_i = clip(ν|w_i| − step, 0, 1) with Σθ_i = k. The sum is piecewise linear in ν, so its
2d sorted breakpoints and one linear equation give ν exactly.

Cost: O(d) for powers, O(d log d) for the k-support norm, in float64.
Paper: none (Lai, Lu, Argyriou; McDonald, Pontil, Stamos, arXiv 1403.1481).
"""

import math

import torch
from torch import Tensor

from eckart.linalg._check import require_finite
from eckart.linalg.norms import require_k


def prox_power(
    x: Tensor,  # (...)
    p: float,
    step: float,
) -> Tensor:  # (...)
    """argmin_s ½(s − x)² + step·|s|^p for every entry x, the global minimiser (0 where two tie).

    Args:
        x: numbers of any sign.
        p: exponent, 0 < p ≤ 2.
        step: weight of the penalty, ≥ 0.

    Returns:
        s: in x's dtype.

    Raises:
        ValueError: p or step out of range, or x holds NaN or infinity.

    Example:
        >>> prox_power(torch.tensor([1.4, 1.6]), p=0.5, step=1.0).tolist()  # the jump is at x = 1.5, to s = 1
        [0.0, 1.1295448541641235]
    """
    require_step(step)
    require_finite("x", x)
    if not 0 < p <= 2:
        raise ValueError(f"p must satisfy 0 < p <= 2, got {p}")
    size = x.abs().double()
    if step == 0:
        return x.clone()
    if p == 1:
        s = (size - step).clamp(min=0)
    elif p == 2:
        s = size / (1 + 2 * step)
    else:
        s = _stationary_point(size, p, step)
    return (torch.sign(x) * s).to(x.dtype)


def prox_vector_k_support_squared(
    w: Tensor,  # (..., d)
    k: int,
    step: float,
) -> Tensor:  # (..., d)
    """argmin_x ½‖x − w‖² + ½ step·‖x‖_k² with the k-support norm of a vector, exactly.

    Args:
        w: vector or batch of vectors, in any order and of any signs.
        k: from 1 to d.
        step: weight of the penalty, ≥ 0.

    Returns:
        x: in w's dtype.

    Raises:
        ValueError: k or step out of range, or w holds NaN or infinity.

    Example:
        >>> prox_vector_k_support_squared(torch.tensor([4.0, -1.0, 1.0]), k=2, step=1.0).tolist()
        [2.0, -0.3333333432674408, 0.3333333432674408]
    """
    require_step(step)
    require_finite("w", w)
    require_k(k, w)
    if step == 0:
        return w.clone()
    size = w.abs().double()
    peak = size.amax(-1, keepdim=True)
    size = size / torch.where(peak > 0, peak, 1.0)
    size = torch.where(size > 1e-100, size, 0.0)  # breakpoints, which are 1/size, stay finite
    theta = (_multiplier(size, k, step) * size - step).clamp(0, 1)
    theta = torch.where((size > 0).sum(-1, keepdim=True) <= k, (size > 0).double(), theta)  # room for every θ_i = 1
    return (w.double() * (theta / (theta + step))).to(w.dtype)


def _multiplier(
    size: Tensor,  # (..., d) ≥ 0, float64
    k: int,
    step: float,
) -> Tensor:  # (..., 1)
    """ν with Σ clip(ν·size − step, 0, 1) = k, on the segment between two breakpoints; any number if all fit under k."""
    size = size.sort(dim=-1, descending=True).values
    starts, ends = step / size, (1 + step) / size  # where θ_i leaves 0 and reaches 1; ascending, infinite for size 0
    sums = torch.nn.functional.pad(size.cumsum(-1), (1, 0))

    def segment(nu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        full = torch.searchsorted(ends, nu, right=True)
        used = torch.searchsorted(starts, nu, right=True)
        slope = sums.gather(-1, used) - sums.gather(-1, full)
        return full.to(slope), (used - full).to(slope), slope  # a float times an integer tensor would be float32

    breaks = torch.cat((starts, ends), dim=-1).sort(dim=-1).values
    full, active, slope = segment(breaks)
    totals = torch.where(breaks.isinf(), math.inf, full + breaks * slope - step * active)
    last = ((totals <= k).sum(-1, keepdim=True) - 1).clamp(min=0)
    nu = breaks.gather(-1, last)
    full, active, slope = segment(nu)
    return torch.where(slope > 0, (k - full + step * active) / slope, nu)


def _stationary_point(
    x: Tensor,  # (...) ≥ 0, float64
    p: float,  # not 1, not 2
    step: float,
) -> Tensor:  # (...)
    """The global minimiser of ½(s − x)² + step·s^p over s ≥ 0: the largest root of s + step·p·s^(p−1) = x, or 0."""
    least = (2 * step * (1 - p)) ** (1 / (2 - p)) if p < 1 else 0.0
    jump = least + step * p * least ** (p - 1) if p < 1 else 0.0
    low, high = torch.full_like(x, least), x.clone()
    for _ in range(80):  # bisection: from s = least up the left side rises, for p < 1 too
        middle = (low + high) / 2
        above = middle + step * p * middle.pow(p - 1) > x
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return torch.where(x > jump, (low + high) / 2, 0.0)


def require_step(step: float) -> None:
    """Raise unless 0 ≤ `step` < ∞."""
    if not 0 <= step < math.inf:
        raise ValueError(f"step must be a finite number of at least 0, got {step}")
