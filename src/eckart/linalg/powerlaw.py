"""The power law in a spectrum's tail: density of λ = σ² ∝ λ^−α above λ_min, fitted by Clauset's method.

For each candidate λ_min among the λ, with k values at or above it, the likelihood is greatest at

    α = 1 + k / Σ ln(λ_i/λ_min),

and the candidate is taken whose fit is nearest to the data in Kolmogorov–Smirnov distance
D = max_i |1 − (λ_i/λ_min)^(1−α) − F(λ_i)|, F(λ_i) the fraction of the k values below λ_i (Clauset's and the `powerlaw`
package's convention). Clauset, Shalizi and Newman, arXiv 0706.1062; on weights of networks Martin and Mahoney,
arXiv 1810.01075.

Cost: all N maximum-likelihood fits are one cumulative sum. D at 64 positions per candidate bounds it from below; only
candidates whose bound beats the best full D are evaluated in full, best bound first. So the search is exact, at O(64·N)
plus O(N) for each candidate that survives: tens to hundreds; in the worst case all N, O(N²) time. Memory O(64·N).
Paper: tails of fewer than `smallest_tail` values are not candidates; otherwise none.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from eckart.linalg._check import require_count, working_dtype
from eckart.linalg._spectrum import as_spectrum

PROBES = 64  # positions that bound a candidate's distance from below
WORK = 1 << 16  # distances evaluated at once: they stay in cache


class PowerLaw(NamedTuple):
    """A fitted tail: the exponent of the density of λ = σ², where the tail starts (a λ), and the KS distance."""

    alpha: Tensor  # (...)
    xmin: Tensor  # (...)
    distance: Tensor  # (...)


def power_law(S: Tensor, *, smallest_tail: int = 10) -> PowerLaw:  # (..., k) -> three (...)
    """Fit a power law to the tail of the energies σ², its start chosen by the Kolmogorov–Smirnov distance.

    Args:
        S: Singular values (..., k), descending; those that are zero to rounding (σ ≤ σ₁·k·ε) are left out.
        smallest_tail: Fewest values that a tail may hold, ≥ 2. Exponents from fewer than 50 or so are rough.

    Returns:
        alpha: Exponent α > 1 of the density of λ, tensor (...). Heavy tails of trained weights give 2 to 6.
        xmin: λ at which the tail starts, in the units of σ².
        distance: Kolmogorov–Smirnov distance of the fit, from 0 to 1. All three are NaN where nothing can be fitted: a
            zero matrix, fewer than smallest_tail values, or no spread among them.

    Raises:
        ValueError: S is not a descending spectrum, or smallest_tail is below 2.

    Example:
        >>> quantiles = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
        >>> fit = power_law(quantiles.pow(-1 / 2.0).sqrt())  # P(λ > x) = x^-2: α = 3
        >>> round(float(fit.alpha), 1), bool(fit.distance < 0.01)
        (3.0, True)
    """
    require_count("smallest_tail", smallest_tail, low=2)
    values = as_spectrum(S)
    dtype = working_dtype(S.dtype)
    floor = values[..., :1] * (values.shape[-1] * torch.finfo(dtype).eps)
    rows = zip(values.flatten(0, -2) if values.ndim > 1 else values[None], floor.reshape(-1), strict=True)
    fits = torch.stack([_fit(2 * row[row > least].log().flip(0), smallest_tail) for row, least in rows])
    return PowerLaw(*(column.reshape(values.shape[:-1]).to(dtype) for column in fits.unbind(-1)))


def _fit(logs: Tensor, smallest_tail: int) -> Tensor:  # (N,) ascending ln λ -> (3,): alpha, xmin, distance
    N = len(logs)
    rank = torch.searchsorted(logs, logs)  # how many values are below: equal values share it
    counts = N - torch.arange(N, device=logs.device)
    spread = logs.flip(0).cumsum(0).flip(0) - counts * logs  # Σ_{j≥i} ln(λ_j/λ_i)
    allowed = (rank == torch.arange(N, device=logs.device)) & (counts >= smallest_tail) & (spread > 1e-9 * counts)
    starts = allowed.nonzero().squeeze(-1)
    if len(starts) == 0:
        return logs.new_full((3,), float("nan"))
    slopes = counts[starts] / spread[starts]  # α − 1
    start, distance = _nearest(logs, rank, starts, slopes)
    return torch.stack((1 + slopes[start], logs[starts[start]].exp(), distance))


def _nearest(logs: Tensor, rank: Tensor, starts: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Which candidate is nearest to its data, and its distance: exact, by a lower bound and then in full."""
    N = len(logs)
    steps = torch.linspace(0, 1, PROBES, dtype=logs.dtype, device=logs.device)
    probes = starts[:, None] + (steps * (N - 1 - starts)[:, None]).long()  # (candidates, PROBES)
    parts = (tensor.split(WORK // PROBES) for tensor in (starts, slopes, probes))
    bound = torch.cat([_distance(logs, rank, *part) for part in zip(*parts, strict=True)])
    order = bound.argsort()
    best, distance = order[0], bound.new_tensor(float("inf"))
    for batch in order.split(max(1, WORK // N)):
        if bound[batch[0]] >= distance:
            break
        full = _distance(logs, rank, starts[batch], slopes[batch])
        if full.min() < distance:
            best, distance = batch[full.argmin()], full.min()
    return best, distance


def _distance(
    logs: Tensor,  # (N,)
    rank: Tensor,  # (N,)
    starts: Tensor,  # (c,)
    slopes: Tensor,  # (c,)
    at: Tensor | None = None,  # (c, p) positions, None: all N
) -> Tensor:  # (c,)
    """max over the positions of |model − data|, those before the start left out."""
    begin = starts[:, None]
    reached, below = (logs, rank) if at is None else (logs[at], rank[at])
    model = -torch.expm1(-slopes[:, None] * (reached - logs[begin]).clamp_min(0))
    data = (below - begin).clamp_min(0) / (len(logs) - begin)
    return (model - data).abs().amax(-1)  # before the start both are 0
