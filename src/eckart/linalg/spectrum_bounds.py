"""What the top of a spectrum and the total energy say about statistics of the whole: sharp intervals.

Known: σ₁ ≥ … ≥ σ_k, the energy E = Σσ² over all p values. Unknown: the q = p − k values of the tail, each in [0, σ_k],
with energies x = σ² that add up to t = E − Σ_{i≤k} σ_i². Two tails are extreme among all of these:

    flat     x = t/q for all, which every other tail majorises
    packed   ⌊t/σ_k²⌋ values at σ_k, one with what remains, zeros, which majorises every other tail

so a Schur-concave statistic is largest on the flat tail and least on the packed one, and both ends are attained:
Σσ (nuclear ratio), −Σσ⁴ (participation ratio), the entropy of energies (effective rank, power 2). For powers in [1, 2)
the effective rank's weights add up to no known sum Z, but the ends are the same. Flat: Z_tail and the tail's own
entropy (≤ ln q) are largest there, and the whole entropy grows with both while Z_tail/Z_top ≤ q·exp(−H_top), which
σ_tail ≤ σ_k ensures. Packed: at a minimum, values inside (0, σ_k) have equal g(x) = −x^(γ−1)(ln p + H), γ = power/2,
and at most one lies where g falls, p·e^H < e^(γ/(1−γ)). But all do: p·e^H ≤ 3/2: at most one nonzero value is smaller.
The energy rank is least on the packed tail and largest on the flat one.

Shapes: S_top (..., k), energy (...), and a pair of (...) out, in float64 when either argument is. Cost O(k).
The ends are exact up to the rounding of E − Σσ², and as accurate as S_top where that is approximate.
Paper: none; the intervals are ours.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from eckart.linalg._check import require_count, require_fraction, working_dtype
from eckart.linalg._spectrum import as_spectrum
from eckart.linalg.spectrum import TIE

SLACK = 0.03  # fraction of the top's energy by which approximate values (within 1 %) may contradict the total
ROUNDING = 1e-12  # of the total energy: the tail's is not known better


class _Known(NamedTuple):
    """What is known, scaled so that σ₁ = 1; all float64."""

    top: Tensor  # (..., k) energies of the largest values
    tail: Tensor  # (...) energy t of the others
    cap: Tensor  # (...) the most that one of them can have, σ_k²
    rest: int  # how many they are, q
    dtype: torch.dtype  # of the answer


def nuclear_ratio_bounds(S_top: Tensor, energy: Tensor | float, count: int) -> tuple[Tensor, Tensor]:  # (..., k)
    """The least and largest (Σσ)²/Σσ² that the largest values and the total energy allow.

    Args:
        S_top: The k largest singular values (..., k), descending.
        energy: ‖W‖_F², the sum of all squared singular values (...). It may contradict approximate S_top by 3 %.
        count: min(m, n), how many singular values there are; at least k.

    Returns:
        low, high: Tensors (...); each is attained by a spectrum with these largest values and this energy.

    Raises:
        ValueError: S_top is not a descending spectrum, count is below k, or no spectrum has this energy.

    Example:
        >>> low, high = nuclear_ratio_bounds(torch.tensor([2.0, 1.0]), 7.0, 6)  # tail (1, 1, 0, 0) or 4 × 0.5 ** 0.5
        >>> round(float(low), 3), round(float(high), 3)
        (3.571, 4.853)
    """
    return _ends(_known(S_top, energy, count), _nuclear_ratio)


def participation_ratio_bounds(S_top: Tensor, energy: Tensor | float, count: int) -> tuple[Tensor, Tensor]:  # (..., k)
    """The least and largest (Σσ²)²/Σσ⁴ that the largest values and the total energy allow.

    Args:
        S_top: The k largest singular values (..., k), descending.
        energy: ‖W‖_F², the sum of all squared singular values (...). It may contradict approximate S_top by 3 %.
        count: min(m, n), how many singular values there are; at least k.

    Returns:
        low, high: Tensors (...); each is attained by a spectrum with these largest values and this energy.

    Raises:
        ValueError: S_top is not a descending spectrum, count is below k, or no spectrum has this energy.

    Example:
        >>> low, high = participation_ratio_bounds(torch.tensor([2.0, 1.0]), 7.0, 6)
        >>> round(float(low), 3), round(float(high), 3)
        (2.579, 2.722)
    """
    return _ends(_known(S_top, energy, count), _participation_ratio)


def effective_rank_bounds(
    S_top: Tensor,  # (..., k)
    energy: Tensor | float,  # (...)
    count: int,
    *,
    power: float = 2,
) -> tuple[Tensor, Tensor]:  # (...), (...)
    """The least and largest effective rank that the largest values and the total energy allow.

    Args:
        S_top: The k largest singular values (..., k), descending.
        energy: ‖W‖_F², the sum of all squared singular values (...). It may contradict approximate S_top by 3 %.
        count: min(m, n), how many singular values there are; at least k.
        power: As in effective_rank, from 1 to 2.

    Returns:
        low, high: Tensors (...); each is attained by a spectrum with these largest values and this energy.

    Raises:
        ValueError: S_top is not a descending spectrum, count is below k, no spectrum has this energy, or power lies
            outside [1, 2].

    Example:
        >>> low, high = effective_rank_bounds(torch.tensor([2.0, 1.0]), 7.0, 6)
        >>> round(float(low), 3), round(float(high), 3)
        (3.17, 3.864)
    """
    if not 1 <= power <= 2:
        raise ValueError(f"power must be from 1 to 2, got {power}; outside, the extreme spectra are others")
    return _ends(_known(S_top, energy, count), lambda energies, counts: _effective_rank(energies, counts, power))


def energy_rank_bounds(
    S_top: Tensor,  # (..., k)
    energy: Tensor | float,  # (...)
    count: int,
    fraction: float = 0.99,
) -> tuple[Tensor, Tensor]:  # (...), (...) int64
    """The least and largest rank at which a fraction of the energy is reached, given the largest values.

    Args:
        S_top: The k largest singular values (..., k), descending.
        energy: ‖W‖_F², the sum of all squared singular values (...). It may contradict approximate S_top by 3 %.
        count: min(m, n), how many singular values there are; at least k.
        fraction: Of the energy, from 0 to 1.

    Returns:
        low, high: int64 tensors (...), equal where the k values given reach the fraction.

    Raises:
        ValueError: S_top is not a descending spectrum, count is below k, no spectrum has this energy, or fraction lies
            outside [0, 1].

    Example:
        >>> low, high = energy_rank_bounds(torch.tensor([2.0, 1.0]), 7.0, 6, 0.9)  # 6.3 of 7; 5 are in the two
        >>> int(low), int(high)
        (4, 5)
    """
    require_fraction("fraction", fraction)
    known = _known(S_top, energy, count)
    total = known.top.sum(-1) + known.tail
    allowed = (1 - fraction) * total * (1 + TIE)
    least = (known.tail - ROUNDING * total).clamp_min(0)
    most = torch.minimum(known.tail + ROUNDING * total, known.rest * known.cap)
    low = _rank_leaving(allowed, known.top, least, known.cap)
    high = _rank_leaving(allowed, known.top, most, most / max(known.rest, 1))
    return low, high.clamp_max(count)


def _rank_leaving(allowed: Tensor, top: Tensor, tail: Tensor, each: Tensor) -> Tensor:  # (...) -> (...) int64
    """The smallest rank that leaves out at most `allowed`, if one value beyond the top has energy `each`."""
    left = top.flip(-1).cumsum(-1).flip(-1) + tail.unsqueeze(-1)  # what ranks 0 … k−1 leave out
    beyond = ((tail - allowed).clamp_min(0) / _nonzero(each)).ceil().long()
    return (left > allowed.unsqueeze(-1)).sum(-1) + beyond


def _known(S_top: Tensor, energy: Tensor | float, count: int) -> _Known:
    values = as_spectrum(S_top, "S_top")
    require_count("count", count, low=values.shape[-1])
    total = torch.as_tensor(energy, dtype=torch.float64, device=values.device)
    if total.shape != values.shape[:-1]:
        raise ValueError(
            f"energy must have one entry per spectrum, {tuple(values.shape[:-1])}, got {tuple(total.shape)}"
        )
    rest = count - values.shape[-1]
    scale = _nonzero(values[..., 0])
    top = (values / scale.unsqueeze(-1)).square()
    given = total / scale.square() - top.sum(-1)
    tail = torch.minimum(given.clamp_min(0), rest * top[..., -1])
    if not bool(((given - tail).abs() <= SLACK * top.sum(-1)).all()):
        raise ValueError(
            f"energy must be ΣS_top² plus that of {rest} values of at most S_top[-1], got {energy} for S_top of shape "
            f"{tuple(S_top.shape)} and energy {values.square().sum(-1)}; pass ‖W‖_F² and count = min(m, n)"
        )
    dtype = torch.promote_types(
        working_dtype(S_top.dtype), energy.dtype if isinstance(energy, Tensor) else torch.float32
    )
    return _Known(top, tail, top[..., -1], rest, dtype)


def _ends(known: _Known, statistic: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The statistic of the packed and of the flat spectrum, each as energies (..., k + 2) and how often each occurs."""
    ones = torch.ones_like(known.top)
    full = torch.floor(known.tail / _nonzero(known.cap)).clamp_max(known.rest)
    packed = torch.stack((known.cap, (known.tail - full * known.cap).clamp_min(0)), -1)
    packed_counts = torch.stack((full, torch.ones_like(full)), -1)
    flat = (known.tail / max(known.rest, 1)).unsqueeze(-1)
    flat_counts = torch.full_like(flat, known.rest)
    low = statistic(torch.cat((known.top, packed), -1), torch.cat((ones, packed_counts), -1))
    high = statistic(torch.cat((known.top, flat), -1), torch.cat((ones, flat_counts), -1))
    return low.to(known.dtype), high.to(known.dtype)


def _nonzero(values: Tensor) -> Tensor:
    return torch.where(values > 0, values, torch.ones_like(values))


# Energies are at most 1, so a sum of them is below 1 only for a zero spectrum, which clamp_min(1) sends to 0.


def _nuclear_ratio(energies: Tensor, counts: Tensor) -> Tensor:
    return (energies.sqrt() * counts).sum(-1).square() / (energies * counts).sum(-1).clamp_min(1)


def _participation_ratio(energies: Tensor, counts: Tensor) -> Tensor:
    return (energies * counts).sum(-1).square() / (energies.square() * counts).sum(-1).clamp_min(1)


def _effective_rank(energies: Tensor, counts: Tensor, power: float) -> Tensor:
    weights = energies.pow(power / 2)
    total = (weights * counts).sum(-1)
    p = weights / total.clamp_min(1).unsqueeze(-1)
    return torch.exp(-(torch.xlogy(p, p) * counts).sum(-1)) * (total > 0)
