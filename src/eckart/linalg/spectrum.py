"""What a spectrum says in one number: ranks and ratios of singular values σ₁ ≥ σ₂ ≥ … ≥ σ_k ≥ 0.

With λ = σ²:

    numerical rank      #{σ_i > σ₁·max(m, n)·ε}
    stable rank         Σλ / λ₁
    effective rank      exp(−Σ p ln p), p = σ^power / Σσ^power   (power 1: Roy and Vetterli 2007; power 2: energies)
    participation ratio (Σλ)² / Σλ²
    nuclear ratio       (Σσ)² / Σλ
    energy rank         the smallest r with Σ_{i≤r} λ_i ≥ fraction·Σλ

All are at most k, do not change when the matrix is scaled, and are 0 for a zero matrix. Participation ≤ effective rank
(power 2) ≤ effective rank (power 1) ≤ rank. Shapes: S (..., k), one number per spectrum out. Cost O(k).
Arithmetic is float64; the result has S's dtype, but float32 for half precision, whose three digits would not do.
Paper: none for the definitions; Roy–Vetterli's rank is power=1, the default is the entropy of the energies.
"""

import math

import torch
from torch import Tensor

from eckart.linalg._check import require_fraction, working_dtype
from eckart.linalg._spectrum import as_spectrum, require_shape, rounding_of

# Energies that are equal in exact arithmetic may differ by rounding; a tie within this fraction of the energy left out
# counts as reached, so that energy_rank([1]*10, 0.9) is 9.
TIE = 1e-9


def _relative(S: Tensor) -> Tensor:  # (..., k) -> (..., k) float64
    """σ/σ₁, so that no power overflows and the largest is exactly 1; a zero spectrum stays zero."""
    values = as_spectrum(S)
    top = values[..., :1]
    return values / torch.where(top > 0, top, torch.ones_like(top))


def numerical_rank(S: Tensor, shape: tuple[int, int], eps: float | None = None) -> Tensor:  # (..., k) -> (...) int64
    """How many singular values stand above rounding: #{σ_i > σ₁·max(m, n)·ε}.

    Args:
        S: Singular values (..., k), descending; k may be less than min(m, n) when the rest are known to be zero.
        shape: (m, n) of the matrix.
        eps: Relative rounding of the matrix's entries, ≥ 0. None: that of the dtype that S was computed in. A matrix
            that was rounded to bfloat16 before has torch.finfo(torch.bfloat16).eps.

    Returns:
        int64 tensor (...); 0 for a zero matrix.

    Raises:
        ValueError: S is not a descending spectrum, holds more than min(m, n) values, or eps is negative.

    Example:
        >>> S = torch.tensor([3.0, 1.0, 1e-3, 1e-9], dtype=torch.float64)
        >>> int(numerical_rank(S, (4, 4))), int(numerical_rank(S, (4, 4), eps=1e-4))
        (4, 2)
    """
    m, n = require_shape(shape, S.shape[-1], whole=False)
    return (_relative(S) > max(m, n) * rounding_of(S.dtype, eps)).sum(-1)


def stable_rank(S: Tensor) -> Tensor:  # (..., k) -> (...)
    """Energy over the largest energy: Σσ² / σ₁², from 1 to the rank.

    Args:
        S: Singular values (..., k), descending.

    Returns:
        Tensor (...); 0 for a zero matrix.

    Raises:
        ValueError: S is not a descending spectrum.

    Example:
        >>> stable_rank(torch.tensor([2.0, 2.0, 1.0]))
        tensor(2.2500)
    """
    return _relative(S).square().sum(-1).to(working_dtype(S.dtype))


def effective_rank(S: Tensor, power: float = 2) -> Tensor:  # (..., k) -> (...)
    """Exponential of the spectrum's entropy: exp(−Σ p ln p) with p = σ^power / Σσ^power.

    Args:
        S: Singular values (..., k), descending.
        power: 2 weighs by energy; 1 is Roy and Vetterli's effective rank, which counts small values for more. > 0.

    Returns:
        Tensor (...), from 1 to the rank; 0 for a zero matrix.

    Raises:
        ValueError: S is not a descending spectrum, or power is not positive.

    Example:
        >>> S = torch.tensor([1.0, 1.0, 0.1])
        >>> effective_rank(S), effective_rank(S, power=1)
        (tensor(2.0566), tensor(2.3434))
    """
    if not (power > 0 and math.isfinite(power)):
        raise ValueError(f"power must be positive, got {power}; use 2 (energies) or 1 (singular values)")
    weights = _relative(S).pow(power)
    total = weights.sum(-1)
    p = weights / total.clamp_min(1).unsqueeze(-1)  # the largest weight is 1, so only a zero spectrum is below
    return (torch.exp(-torch.xlogy(p, p).sum(-1)) * (total > 0)).to(working_dtype(S.dtype))


def participation_ratio(S: Tensor) -> Tensor:  # (..., k) -> (...)
    """How many directions share the energy: (Σσ²)² / Σσ⁴, from 1 to the rank.

    Args:
        S: Singular values (..., k), descending.

    Returns:
        Tensor (...); 0 for a zero matrix.

    Raises:
        ValueError: S is not a descending spectrum.

    Example:
        >>> participation_ratio(torch.tensor([2.0, 2.0, 1.0]))
        tensor(2.4545)
    """
    energies = _relative(S).square()
    return (energies.sum(-1).square() / energies.square().sum(-1).clamp_min(1)).to(working_dtype(S.dtype))


def nuclear_ratio(S: Tensor) -> Tensor:  # (..., k) -> (...)
    """Nuclear over Frobenius norm, squared: (Σσ)² / Σσ², from 1 to the rank.

    Args:
        S: Singular values (..., k), descending.

    Returns:
        Tensor (...); 0 for a zero matrix.

    Raises:
        ValueError: S is not a descending spectrum.

    Example:
        >>> nuclear_ratio(torch.tensor([2.0, 2.0, 1.0]))
        tensor(2.7778)
    """
    values = _relative(S)
    return (values.sum(-1).square() / values.square().sum(-1).clamp_min(1)).to(working_dtype(S.dtype))


def energy_rank(S: Tensor, fraction: float = 0.99) -> Tensor:  # (..., k) -> (...) int64
    """The smallest rank that keeps a fraction of the energy: min r with Σ_{i≤r} σ_i² ≥ fraction·Σσ².

    Args:
        S: Singular values (..., k), descending.
        fraction: Of the energy Σσ², from 0 to 1; 1 counts the values that are not exactly zero.

    Returns:
        int64 tensor (...); 0 for a zero matrix.

    Raises:
        ValueError: S is not a descending spectrum, or fraction lies outside [0, 1].

    Example:
        >>> S = torch.tensor([3.0, 2.0, 1.0, 0.1])
        >>> int(energy_rank(S, 0.9)), int(energy_rank(S))
        (2, 3)
    """
    require_fraction("fraction", fraction)
    energies = _relative(S).square()
    left = energies.flip(-1).cumsum(-1).flip(-1)  # left[r] = energy that rank r leaves out, small values added first
    allowed = (1 - fraction) * left[..., :1] * (1 + TIE)
    return (left > allowed).sum(-1)
