"""How much of a spectrum is noise: the Marchenko–Pastur law with unknown variance.

An m×n matrix of independent entries with variance σ² (K = max(m, n), β = min(m, n)/K) has energies s²/(Kσ²) spread, as
it grows, by the Marchenko–Pastur law with density √((b−x)(x−a)) / (2πβx) on [a, b] = [(1−√β)², (1+√β)²]. So

    σ̂ = median(S) / √(K·μ_β),   edge = σ̂(√m + √n)

with μ_β the law's median; the median ignores signal while fewer than half of the directions carry it. With
x = 1 + β + 2√β cos θ the law integrates in closed form,

    P(X > x(θ)) = [(1+β)θ/(4β) − sin θ/(2√β) − (1−β)/(2β)·arctan((1−√β)/(1+√β)·tan(θ/2))]·2/π,

also at β = 1, where the density diverges at 0; μ_β is its root at ½, by bisection.

The largest value of pure noise fluctuates about the edge by the Tracy–Widom law at the relative scale
½(1/√m + 1/√n)^{1/3} / (√m + √n) (Johnstone 2001). `outlier_threshold` adds MARGIN of it, the law's 99.9 % point. With
σ̂'s own error, 4000 draws of Gaussian noise had an outlier in 1.6 % at 16×16, 1.0 % at 30×30 and 0.2 % at 30×105.
References: Marchenko and Pastur 1967; Gavish and Donoho, arXiv 1305.5870 (σ̂ from the median). Cost O(min(m, n)).
Paper: the margin is ours; Gavish and Donoho cut where denoising loses least (4/√3·√n if square), we at the edge.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from eckart.linalg._check import working_dtype
from eckart.linalg._spectrum import as_spectrum, require_shape, rounding_of

MARGIN = 3.27  # P(Tracy–Widom of order 1 ≤ 3.27) = 0.999


@lru_cache(maxsize=4096)
def marchenko_pastur_median(beta: float) -> float:
    """The median of the Marchenko–Pastur law of unit variance and aspect ratio β.

    Args:
        beta: min(m, n) / max(m, n), in (0, 1].

    Returns:
        The median of s²/(K·σ²), from 0.6528 (β = 1) to 1 (β → 0).

    Raises:
        ValueError: beta lies outside (0, 1].

    Example:
        >>> round(marchenko_pastur_median(1.0), 4), round(marchenko_pastur_median(0.1), 4)
        (0.6528, 0.9666)
    """
    if not 0 < beta <= 1:
        raise ValueError(f"beta must be min(m, n)/max(m, n), in (0, 1], got {beta}")
    root = math.sqrt(beta)

    def above(theta: float) -> float:  # P(X > x(theta)), increasing from 0 to 1
        corner = math.atan((1 - root) / (1 + root) * math.tan(theta / 2))
        area = (1 + beta) * theta / (4 * beta) - math.sin(theta) / (2 * root) - (1 - beta) / (2 * beta) * corner
        return area * 2 / math.pi

    low, high = 0.0, math.pi
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if above(middle) < 0.5 else (low, middle)
    return 1 + beta + 2 * root * math.cos(low)


def marchenko_pastur_edge(S: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:  # (..., k) -> (...), (...)
    """Where the singular values of pure noise end, its variance taken from the spectrum's median.

    Args:
        S: All min(m, n) singular values (..., k), descending.
        shape: (m, n) of the matrix.

    Returns:
        edge: σ̂(√m + √n), tensor (...).
        sigma: σ̂, the standard deviation of one noise entry. Both are 0 when at least half of the values are 0: a
            matrix without noise. Rows or columns that are known to be dead should be cut out first.

    Raises:
        ValueError: S is not a descending spectrum of min(m, n) values.

    Example:
        >>> W = torch.randn(200, 700, generator=torch.Generator().manual_seed(0))
        >>> edge, sigma = marchenko_pastur_edge(torch.linalg.svdvals(W), (200, 700))
        >>> round(float(sigma), 2), round(float(edge), 1)
        (1.0, 40.7)
    """
    m, n = require_shape(shape, S.shape[-1], whole=True)
    values = as_spectrum(S)
    k = values.shape[-1]
    median = (values[..., (k - 1) // 2] + values[..., k // 2]) / 2
    sigma = median / math.sqrt(max(m, n) * marchenko_pastur_median(min(m, n) / max(m, n)))
    dtype = working_dtype(S.dtype)
    return (sigma * (math.sqrt(m) + math.sqrt(n))).to(dtype), sigma.to(dtype)


def outlier_threshold(S: Tensor, shape: tuple[int, int], eps: float | None = None) -> Tensor:  # (..., k) -> (...)
    """The value that the largest singular value of pure noise rarely exceeds (in 1 % of draws or less from 30×30 on).

    Args:
        S: All min(m, n) singular values (..., k), descending.
        shape: (m, n) of the matrix.
        eps: Relative rounding of the matrix's entries, as in `numerical_rank`; None: that of S's dtype.

    Returns:
        The Marchenko–Pastur edge with the Tracy–Widom margin, and at least the rounding σ₁·max(m, n)·ε; tensor (...).

    Raises:
        ValueError: S is not a descending spectrum of min(m, n) values, or eps is negative.

    Example:
        >>> S = torch.tensor([5.0, 1.0, 0.9, 0.8])
        >>> round(float(marchenko_pastur_edge(S, (4, 4))[0]), 2), round(float(outlier_threshold(S, (4, 4))), 2)
        (2.35, 3.31)
    """
    edge, _ = marchenko_pastur_edge(S, shape)
    rows, columns = math.sqrt(shape[0]), math.sqrt(shape[1])
    scale = (1 / rows + 1 / columns) ** (1 / 3) / (2 * (rows + columns))
    rounding = S[..., 0].to(edge.dtype) * max(shape) * rounding_of(S.dtype, eps)
    return torch.maximum(edge * (1 + MARGIN * scale), rounding)


def count_outliers(S: Tensor, shape: tuple[int, int], eps: float | None = None) -> Tensor:  # (..., k) -> (...) int64
    """How many singular values stand out of the noise: #{σ_i > outlier_threshold}.

    Args:
        S: All min(m, n) singular values (..., k), descending.
        shape: (m, n) of the matrix.
        eps: Relative rounding of the matrix's entries, as in `numerical_rank`; None: that of S's dtype.

    Returns:
        int64 tensor (...); 0 for pure noise of any aspect ratio and for a zero matrix, the rank for a matrix without
        noise whose rank is below min(m, n)/2.

    Raises:
        ValueError: S is not a descending spectrum of min(m, n) values, or eps is negative.

    Example:
        >>> noise = torch.randn(200, 700, generator=torch.Generator().manual_seed(0))
        >>> spike = torch.zeros(200, 700)
        >>> spike[0, 0] = 60.0
        >>> [int(count_outliers(torch.linalg.svdvals(W), (200, 700))) for W in (noise, noise + spike)]
        [0, 1]
    """
    threshold = outlier_threshold(S, shape, eps)
    return (S.to(threshold.dtype) > threshold.unsqueeze(-1)).sum(-1)
