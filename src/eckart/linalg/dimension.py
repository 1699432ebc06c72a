"""Intrinsic dimension of a cloud of points from nearest neighbours: TwoNN (Facco et al., arXiv 1803.06992).

Where the density is locally constant, the ratio μ = r₂/r₁ of a point's two nearest distances follows
P(μ > x) = x^−d, so ln μ is exponential with rate d. From the N ratios in ascending order, the largest N − K trimmed,

    d = K / (Σ_{i≤K} ln μ_i + (N − K)·ln μ_K),

the likelihood of a sample that is censored at its K-th value; K = N gives N/Σ ln μ. Shapes: X (N, d_ambient).
Cost: O(N²·d) in float64, distances in chunks of at most CHUNK entries.
Paper: Facco et al. trim too, but then fit −ln(1 − F) against ln μ by least squares; the censored likelihood uses the
same ratios with less variance and needs no special case at trim = 0. Equal rows count once.
"""

import torch
from torch import Tensor

from eckart.linalg._check import require_finite, require_matrix, working_dtype

CHUNK = 1 << 22  # distances held at once


def intrinsic_dimension(X: Tensor, *, trim: float = 0.1) -> Tensor:  # (N, d) -> ()
    """TwoNN estimate of the dimension of the manifold that the rows of X lie on.

    Args:
        X: One point per row, (N, d). A few hundred rows give a rough answer; the estimate falls short of a high
            dimension (beyond about 10) unless N grows exponentially with it.
        trim: Fraction of the largest ratios to leave out, in [0, 1): they come from isolated points.

    Returns:
        The dimension, scalar tensor; 0 when fewer than three rows differ, infinite when every point's two nearest
        distances are equal (a lattice).

    Raises:
        ValueError: X is not (N, d), is not finite, or trim lies outside [0, 1).

    Example:
        >>> angle = torch.rand(2000, generator=torch.Generator().manual_seed(0)) * 6.28
        >>> circle = torch.stack((angle.cos(), angle.sin(), 0 * angle), dim=1)
        >>> round(float(intrinsic_dimension(circle)), 1)
        1.0
    """
    require_matrix("X", X)
    if X.ndim != 2:
        raise ValueError(f"X must be one cloud of points (N, d), got shape {tuple(X.shape)}; call it once for each")
    if not 0 <= trim < 1:
        raise ValueError(f"trim must be at least 0 and below 1, got {trim}")
    require_finite("X", X)
    points = torch.unique(X.detach(), dim=0).double()
    if len(points) < 3:
        return X.new_zeros((), dtype=working_dtype(X.dtype))
    near = _two_nearest(points - points.mean(0))
    logs = (near[:, 1] / near[:, 0]).log().sort().values
    kept = len(logs) - int(trim * len(logs))
    censored = (len(logs) - kept) * logs[kept - 1]
    return (kept / (logs[:kept].sum() + censored)).to(working_dtype(X.dtype))


def _two_nearest(points: Tensor) -> Tensor:  # (N, d) distinct rows -> (N, 2), r₁ ≤ r₂
    points = points / points.abs().max()
    norms = points.square().sum(1)
    nearest = []
    for rows in torch.arange(len(points), device=points.device).split(max(1, CHUNK // len(points))):
        squares = norms - 2 * points[rows] @ points.T  # up to each row's own norm, which orders nothing
        squares[torch.arange(len(rows), device=points.device), rows] = float("inf")
        index = squares.topk(2, largest=False).indices
        # The product finds the neighbours; the difference tells how far they are, without cancellation.
        gaps = torch.stack([(points[rows] - points[index[:, i]]).norm(dim=1) for i in (0, 1)], dim=1)
        nearest.append(gaps.sort(dim=1).values)
    return torch.cat(nearest).clamp_min(torch.finfo(points.dtype).tiny)
