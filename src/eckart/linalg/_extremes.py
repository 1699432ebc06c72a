"""The two extreme spectra that the largest values and the total energy allow: packed, and flat.

Values that are known to a relative `accuracy` a (Ritz values, always below the truth) may be any σ_i ≤ σ ≤ σ_i/(1−a),
so the intervals hold surely with

    flat     the values given, raised to the tail's level where that is higher, which all other spectra majorise
    packed   the largest values raised to σ_i/(1−a) as far as the energy goes, then a tail packed at σ_k/(1−a)

The statistics depend on x/E alone, so an error e of E is one of the limits: low/(1 + e) ≤ x ≤ high/(1 − e).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from eckart.linalg._check import require_count
from eckart.linalg._spectrum import as_spectrum

SLACK = 0.03  # fraction of the top's energy by which approximate values (within 1 %) may contradict the total
FLOAT32 = 1e-6  # of σ₁ and of the energy: what float32 may get wrong where an accuracy is given


class Extreme(NamedTuple):
    """An extreme spectrum as energies, scaled so that the first value given is 1; all float64."""

    top: Tensor  # (..., k) energies of the largest values
    tail: Tensor  # (...) energy of the others
    each: Tensor  # (...) what each of them has, but for one that has what remains


def extremes(
    S_top: Tensor,  # (..., k)
    energy: Tensor | float,  # (...)
    count: int,
    accuracy: float,
    rounding: float = 0.0,
) -> tuple[Extreme, Extreme]:
    """The packed and the flat spectrum; the energy, too, is only known within `rounding` of itself."""
    values = as_spectrum(S_top, "S_top")
    require_count("count", count, low=values.shape[-1])
    if not 0 <= accuracy < 1:
        raise ValueError(f"accuracy must be from 0 to below 1, got {accuracy}")
    total = torch.as_tensor(energy, dtype=torch.float64, device=values.device)
    if total.shape != values.shape[:-1]:
        raise ValueError(
            f"energy must have one entry per spectrum, {tuple(values.shape[:-1])}, got {tuple(total.shape)}"
        )
    scale = nonzero(values[..., 0])
    values, total = values / scale.unsqueeze(-1), total / scale.square()
    error = min(accuracy, FLOAT32)
    slip = error * values[..., :1]
    low = (values - slip).clamp_min(0).square() / (1 + error)
    high = (values / (1 - accuracy) + slip).square() / (1 - error)
    rest = count - values.shape[-1]
    least, most = low.sum(-1), high.sum(-1) + rest * high[..., -1]
    given = torch.minimum(torch.maximum(total, least), most)
    if not bool(((given - total).abs() <= SLACK * values.square().sum(-1)).all()):
        raise ValueError(
            f"energy must be ΣS_top² plus that of {rest} values of at most S_top[-1], got {energy} for S_top of shape "
            f"{tuple(S_top.shape)} and energy {S_top.double().square().sum(-1)}; pass ‖W‖_F² and count = min(m, n)"
        )
    spread = 0.0 if accuracy else rounding * given
    packed = _packed(low, high, torch.maximum(given - spread, least))
    return packed, _flat(low, torch.minimum(given + spread, most), rest)


def _packed(low: Tensor, high: Tensor, total: Tensor) -> Extreme:
    """All energy as far up as it goes: each top value in turn from `low` to `high`, then the tail under the last."""
    spare = (total - low.sum(-1)).unsqueeze(-1)
    room = high - low
    top = low + torch.minimum(room, (spare - room.cumsum(-1) + room).clamp_min(0))
    return Extreme(top, (spare.squeeze(-1) - room.sum(-1)).clamp_min(0), high[..., -1])


def _flat(low: Tensor, total: Tensor, rest: int) -> Extreme:
    """All energy beyond `low` as level as it gets: none below the level c, with Σ max(low_i, c) + rest·c = total."""
    k, spare = low.shape[-1], (total - low.sum(-1)).unsqueeze(-1)
    beyond = torch.nn.functional.pad(low.flip(-1).cumsum(-1).flip(-1), (0, 1))  # what the j largest leave, j = 0 … k
    counts = torch.arange(k + rest, rest - 1, -1, dtype=low.dtype, device=low.device)
    usable = k + 1 if rest else k
    # Where the right j stay above the level it is the mean of the others; any other j gives a higher one.
    level = ((beyond + spare)[..., :usable] / counts[:usable]).amin(-1).clamp_min(0)
    return Extreme(torch.maximum(low, level.unsqueeze(-1)), rest * level, level)


def nonzero(values: Tensor) -> Tensor:
    return torch.where(values > 0, values, torch.ones_like(values))
