"""Two profiles side by side: what changed in each matrix's spectrum between two models or two moments of training."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from .entry import Entry

if TYPE_CHECKING:
    from .profile import Profile

COMPARED = ("norm", "spectral_norm", "stable_rank", "effective_rank", "energy_rank_90", "outliers", "alpha")


def compare(before: "Profile", after: "Profile") -> list[dict[str, Any]]:
    """One row for each matrix of either profile: each statistic before and after, and how far the spectrum moved.

    Args:
        before: A profile.
        after: A later one, or one of another model with matrices of the same names.

    Returns:
        Rows with name, of, present ("both", "before", "after"), `<statistic>_before` and `<statistic>_after`, and
        spectrum_distance = ‖σ_after − σ_before‖ / ‖σ_before‖ over the values that both know (None where shapes differ).

    Example:
        >>> import torch, eckart
        >>> layer = torch.nn.Linear(4, 4, bias=False)
        >>> _ = torch.nn.init.eye_(layer.weight)
        >>> start = eckart.measure(torch.nn.Sequential(layer))
        >>> _ = layer.weight.data.mul_(3)
        >>> (row,) = compare(start, eckart.measure(torch.nn.Sequential(layer)))
        >>> row["norm_before"], row["norm_after"], row["spectrum_distance"]
        (2.0, 6.0, 2.0)
    """
    old, new = _by_key(before), _by_key(after)
    return [_compared(key, old.get(key), new.get(key)) for key in dict.fromkeys([*old, *new])]


def _by_key(profile: "Profile") -> dict[tuple[str, str], tuple[dict[str, Any], Entry]]:
    return {(e.of, e.name): (r, e) for r, e in zip(profile.rows(), profile.entries, strict=True)}


def _compared(
    key: tuple[str, str],
    old: tuple[dict[str, Any], Entry] | None,
    new: tuple[dict[str, Any], Entry] | None,
) -> dict[str, Any]:
    present = "both" if old and new else "before" if old else "after"
    result: dict[str, Any] = {"name": key[1], "of": key[0], "present": present}
    for statistic in COMPARED:
        result[f"{statistic}_before"] = old[0][statistic] if old else None
        result[f"{statistic}_after"] = new[0][statistic] if new else None
    same = old is not None and new is not None and old[1].shape == new[1].shape
    result["spectrum_distance"] = _distance(old[1].values, new[1].values) if same and old and new else None
    return result


def _distance(before: Tensor, after: Tensor) -> float | None:
    known = min(len(before), len(after))
    scale = float(before[:known].norm())
    return float((after[:known] - before[:known]).norm()) / scale if scale else None
