"""What the top of a spectrum and the total energy say about statistics of the whole: sharp intervals.

Known: σ₁ ≥ … ≥ σ_k, the energy E = Σσ² over all p values. Unknown: the q = p − k values of the tail, each in [0, σ_k],
with energies x = σ² that add up to t = E − Σ_{i≤k} σ_i². Two tails are extreme among all of these:

    flat     x = t/q for all, which every other tail majorises
    packed   ⌊t/σ_k²⌋ values at σ_k, one with what remains, zeros, which majorises every other tail

so a Schur-concave statistic is largest on the flat tail and least on the packed one, and both ends are attained:
Σσ (nuclear ratio), −Σσ⁴ (participation ratio), the entropy of energies (effective rank). The energy rank is least on
the packed tail and largest on the flat one.

Values known only to an `accuracy`, as those of `top_singular_values` are, widen the intervals (`_extremes`).

Shapes: S_top (..., k), energy (...), and a pair of (...) out, in float64 when either argument is. Cost O(k).
Paper: none; the intervals are ours.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from eckart.linalg._check import require_fraction, working_dtype
from eckart.linalg._extremes import Extreme, extremes, nonzero
from eckart.linalg.spectrum import TIE

ROUNDING = 1e-12  # of the total energy: the tail's is not known better


def nuclear_ratio_bounds(
    S_top: Tensor,  # (..., k)
    energy: Tensor | float,  # (...)
    count: int,
    *,
    accuracy: float = 0.0,
) -> tuple[Tensor, Tensor]:  # (...), (...)
    """The least and largest (Σσ)²/Σσ² that the largest values and the total energy allow.

    Args:
        S_top: The k largest singular values (..., k), descending.
        energy: ‖W‖_F², the sum of all squared singular values (...). It may contradict approximate S_top by 3 %.
        count: min(m, n), how many singular values there are; at least k.
        accuracy: By how much of itself each value of S_top may be too small, from 0 to below 1; 0.01 covers
            `top_singular_values`. Above 0 the energy, and every value by so much of σ₁, may also be off by 1e-6.

    Returns:
        low, high: Tensors (...); each is attained by a spectrum with these largest values and this energy (accuracy 0).

    Raises:
        ValueError: S_top is not a descending spectrum, count is below k, accuracy lies outside [0, 1), or no spectrum
            has this energy.

    Example:
        >>> low, high = nuclear_ratio_bounds(torch.tensor([2.0, 1.0]), 7.0, 6)  # tail (1, 1, 0, 0) or 4 × 0.5 ** 0.5
        >>> round(float(low), 3), round(float(high), 3)
        (3.571, 4.853)
    """
    return _ends(_nuclear_ratio, S_top, energy, count, accuracy)


def participation_ratio_bounds(
    S_top: Tensor,  # (..., k)
    energy: Tensor | float,  # (...)
    count: int,
    *,
    accuracy: float = 0.0,
) -> tuple[Tensor, Tensor]:  # (...), (...)
    """The least and largest (Σσ²)²/Σσ⁴ that the largest values and the total energy allow.

    Args:
        S_top: The k largest singular values (..., k), descending.
        energy: ‖W‖_F², the sum of all squared singular values (...). It may contradict approximate S_top by 3 %.
        count: min(m, n), how many singular values there are; at least k.
        accuracy: By how much of itself each value of S_top may be too small, from 0 to below 1; 0.01 covers
            `top_singular_values`. Above 0 the energy, and every value by so much of σ₁, may also be off by 1e-6.

    Returns:
        low, high: Tensors (...); each is attained by a spectrum with these largest values and this energy (accuracy 0).

    Raises:
        ValueError: S_top is not a descending spectrum, count is below k, accuracy lies outside [0, 1), or no spectrum
            has this energy.

    Example:
        >>> low, high = participation_ratio_bounds(torch.tensor([2.0, 1.0]), 7.0, 6)
        >>> round(float(low), 3), round(float(high), 3)
        (2.579, 2.722)
    """
    return _ends(_participation_ratio, S_top, energy, count, accuracy)


def effective_rank_bounds(
    S_top: Tensor,  # (..., k)
    energy: Tensor | float,  # (...)
    count: int,
    *,
    accuracy: float = 0.0,
) -> tuple[Tensor, Tensor]:  # (...), (...)
    """The least and largest effective rank (power 2) that the largest values and the total energy allow.

    Args:
        S_top: The k largest singular values (..., k), descending.
        energy: ‖W‖_F², the sum of all squared singular values (...). It may contradict approximate S_top by 3 %.
        count: min(m, n), how many singular values there are; at least k.
        accuracy: By how much of itself each value of S_top may be too small, from 0 to below 1; 0.01 covers
            `top_singular_values`. Above 0 the energy, and every value by so much of σ₁, may also be off by 1e-6.

    Returns:
        low, high: Tensors (...); each is attained by a spectrum with these largest values and this energy (accuracy 0).

    Raises:
        ValueError: S_top is not a descending spectrum, count is below k, accuracy lies outside [0, 1), or no spectrum
            has this energy.

    Example:
        >>> low, high = effective_rank_bounds(torch.tensor([2.0, 1.0]), 7.0, 6)
        >>> round(float(low), 3), round(float(high), 3)
        (3.17, 3.864)
    """
    return _ends(_effective_rank, S_top, energy, count, accuracy)


def energy_rank_bounds(
    S_top: Tensor,  # (..., k)
    energy: Tensor | float,  # (...)
    count: int,
    fraction: float = 0.99,
    *,
    accuracy: float = 0.0,
) -> tuple[Tensor, Tensor]:  # (...), (...) int64
    """The least and largest rank at which a fraction of the energy is reached, given the largest values.

    Args:
        S_top: The k largest singular values (..., k), descending.
        energy: ‖W‖_F², the sum of all squared singular values (...). It may contradict approximate S_top by 3 %.
        count: min(m, n), how many singular values there are; at least k.
        fraction: Of the energy, from 0 to 1.
        accuracy: By how much of itself each value of S_top may be too small, from 0 to below 1; 0.01 covers
            `top_singular_values`. Above 0 the energy, and every value by so much of σ₁, may also be off by 1e-6.

    Returns:
        low, high: int64 tensors (...), equal where the k values given reach the fraction.

    Raises:
        ValueError: S_top is not a descending spectrum, count is below k, no spectrum has this energy, accuracy lies
            outside [0, 1) or fraction outside [0, 1].

    Example:
        >>> low, high = energy_rank_bounds(torch.tensor([2.0, 1.0]), 7.0, 6, 0.9)  # 6.3 of 7; 5 are in the two
        >>> int(low), int(high)
        (4, 5)
    """
    require_fraction("fraction", fraction)
    packed, flat = extremes(S_top, energy, count, accuracy, ROUNDING)
    return _rank(packed, fraction), _rank(flat, fraction).clamp_max(count)


def _rank(spectrum: Extreme, fraction: float) -> Tensor:  # (...) int64
    """The smallest rank that leaves out at most 1 − fraction of the energy."""
    top, tail, each = spectrum
    left = top.flip(-1).cumsum(-1).flip(-1) + tail.unsqueeze(-1)  # what ranks 0 … k−1 leave out
    allowed = (1 - fraction) * left[..., 0] * (1 + TIE)
    beyond = ((tail - allowed).clamp_min(0) / nonzero(each)).ceil().long()
    return (left > allowed.unsqueeze(-1)).sum(-1) + beyond


def _ends(
    statistic: Callable[[Tensor, Tensor], Tensor],
    S_top: Tensor,
    energy: Tensor | float,
    count: int,
    accuracy: float,
) -> tuple[Tensor, Tensor]:
    """The statistic of the packed and of the flat spectrum, each as energies (..., k + 2) and how often each occurs."""
    rest = count - S_top.shape[-1]
    dtype = torch.promote_types(
        working_dtype(S_top.dtype), energy.dtype if isinstance(energy, Tensor) else torch.float32
    )
    ends = []
    for top, tail, each in extremes(S_top, energy, count, accuracy):
        full = torch.floor(tail / nonzero(each)).clamp_max(rest)
        remains = (tail - full * each).clamp_min(0)
        energies = torch.cat((top, torch.stack((each, remains), -1)), -1)
        counts = torch.cat((torch.ones_like(top), torch.stack((full, torch.ones_like(full)), -1)), -1)
        ends.append(statistic(energies, counts).to(dtype))
    return ends[0], ends[1]


# A zero spectrum has sums of zero, which nonzero keeps from dividing: its statistics are 0.


def _nuclear_ratio(energies: Tensor, counts: Tensor) -> Tensor:
    return (energies.sqrt() * counts).sum(-1).square() / nonzero((energies * counts).sum(-1))


def _participation_ratio(energies: Tensor, counts: Tensor) -> Tensor:
    return (energies * counts).sum(-1).square() / nonzero((energies.square() * counts).sum(-1))


def _effective_rank(energies: Tensor, counts: Tensor) -> Tensor:
    total = (energies * counts).sum(-1)
    p = energies / nonzero(total).unsqueeze(-1)
    return torch.exp(-(torch.xlogy(p, p) * counts).sum(-1)) * (total > 0)
