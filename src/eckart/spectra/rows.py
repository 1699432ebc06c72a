"""From a spectrum to the row of numbers that is shown for it.

Where only the largest singular values are known (`fast`), a number that needs the others is given as an interval that
surely holds it, or as None; it is never guessed.
"""

import math
from typing import Any

from eckart import linalg
from eckart.nn import locate

from .entry import Entry

Value = float | int | str | None | tuple[float, float]
ACCURACY = 0.01
"""How far a value of `linalg.top_singular_values` may lie below the true one, as a share of it."""


def row(entry: Entry) -> dict[str, Any]:
    """The statistics of one entry, in the order in which they are shown.

    Example:
        >>> import torch
        >>> from eckart.spectra.entry import complete_entry
        >>> r = row(complete_entry("layers.3.q_proj", "weights", (4, 4), torch.tensor([2.0, 1.0, 1.0, 0.0]), 1e-7))
        >>> r["layer"], r["kind"], r["stable_rank"], r["numerical_rank"]
        (3, 'q_proj', 1.5, 3)
    """
    layer, kind = locate(entry.name)
    m, n = entry.shape
    head: dict[str, Any] = {
        "name": entry.name,
        "of": entry.of,
        "layer": layer,
        "kind": kind,
        "m": m,
        "n": n,
        "norm": entry.energy**0.5,
        "spectral_norm": float(entry.values[0]),
    }
    return head | (_complete(entry) if entry.complete else _bounded(entry)) | entry.extra


def _complete(entry: Entry) -> dict[str, Value]:
    S, eps = entry.values, entry.relative_rounding
    effective = float(linalg.effective_rank(S))
    numerical = int(linalg.numerical_rank(S, entry.shape, eps))
    fit = linalg.power_law(S[: max(numerical, 1)])
    return {
        "stable_rank": float(linalg.stable_rank(S)),
        "effective_rank": effective,
        "effective_rank_fraction": effective / entry.count,
        "participation_ratio": float(linalg.participation_ratio(S)),
        "nuclear_ratio": float(linalg.nuclear_ratio(S)),
        "energy_rank_90": int(linalg.energy_rank(S, 0.90)),
        "energy_rank_99": int(linalg.energy_rank(S, 0.99)),
        "numerical_rank": numerical,
        "noise_edge": float(linalg.outlier_threshold(S, entry.shape, eps)),
        "outliers": int(linalg.count_outliers(S, entry.shape, eps)),
        "alpha": finite(float(fit.alpha)),  # NaN: too few distinct values for a fit
        "alpha_distance": finite(float(fit.distance)),
    }


def _bounded(entry: Entry) -> dict[str, Value]:
    known = (entry.values, entry.energy, entry.count)
    spectral = float(entry.values[0])
    high = (1 + 1e-6) * entry.energy / spectral**2 if spectral else 0.0  # the energy itself is summed in float32
    effective = _interval(linalg.effective_rank_bounds(*known, accuracy=ACCURACY))
    return {
        "stable_rank": (max(high / (1 + ACCURACY) ** 2, float(high > 0)), high),
        "effective_rank": effective,
        "effective_rank_fraction": (effective[0] / entry.count, effective[1] / entry.count),
        "participation_ratio": _interval(linalg.participation_ratio_bounds(*known, accuracy=ACCURACY)),
        "nuclear_ratio": _interval(linalg.nuclear_ratio_bounds(*known, accuracy=ACCURACY)),
        "energy_rank_90": _sharp(linalg.energy_rank_bounds(*known, fraction=0.90, accuracy=ACCURACY)),
        "energy_rank_99": _sharp(linalg.energy_rank_bounds(*known, fraction=0.99, accuracy=ACCURACY)),
        "numerical_rank": None,
        "noise_edge": None,
        "outliers": None,
        "alpha": None,
        "alpha_distance": None,
    }


def finite(value: float) -> float | None:
    """The value, or None where it is no number that a file could hold."""
    return value if math.isfinite(value) else None


def _interval(bounds: tuple[Any, Any]) -> tuple[float, float]:
    return float(bounds[0]), float(bounds[1])


def _sharp(bounds: tuple[Any, Any]) -> Value:
    """A whole number where both ends agree, the interval where they do not."""
    low, high = int(bounds[0]), int(bounds[1])
    return low if low == high else (low, high)
