"""A profile as a pandas table."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from .values import ends, is_interval

if TYPE_CHECKING:
    from eckart.spectra import Profile


def frame(profile: "Profile") -> pd.DataFrame:
    """The rows of a profile as a DataFrame, one for each matrix.

    Args:
        profile: what `eckart.measure` returned.

    Returns:
        The columns of `profile.rows()`, in their order. A column that holds a (low, high) interval anywhere is
        followed by `<column>_low` and `<column>_high`; there the column itself is empty where only the interval is
        known, and both ends equal it where the value is known. Whole numbers are the nullable `Int64`.

    Example:
        >>> import torch, eckart
        >>> from eckart.report import frame
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False))
        >>> _ = torch.nn.init.eye_(model[0].weight)
        >>> print(frame(eckart.measure(model))[["name", "m", "n", "stable_rank"]].to_string(index=False))
        name  m  n  stable_rank
           0  2  3          2.0
    """
    rows = profile.rows()
    columns: dict[str, pd.Series] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        values: list[Any] = [row.get(key) for row in rows]
        columns[key] = _series([None if is_interval(value) else value for value in values])
        if any(map(is_interval, values)):
            for suffix, side in zip(("low", "high"), zip(*map(ends, values), strict=True), strict=True):
                columns[f"{key}_{suffix}"] = _series(list(side))
    return pd.DataFrame(columns)


def _series(values: list[Any]) -> pd.Series:
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, int) for value in known):
        return pd.Series(values, dtype="Int64")
    if all(isinstance(value, int | float) for value in known):
        return pd.Series(values, dtype="float64")
    return pd.Series(values, dtype="object")
