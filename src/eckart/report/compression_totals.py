"""What all rows of a compression come to, for the page and for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Totals(NamedTuple):
    """What is kept of the selected matrices' bytes, how many matrices there are, and how many are compressed."""

    kept: float
    matrices: int
    compressed: int


def totals(rows: Sequence[Mapping[str, Any]]) -> Totals:
    """Of the rows that a plan or a compressed model gives.

    Example:
        >>> totals([{"name": "a + b", "matrices": ["a", "b"], "form": "shared", "bytes": 96, "dense_bytes": 128}])
        Totals(kept=0.75, matrices=2, compressed=2)
    """
    whole = sum(row["dense_bytes"] for row in rows)
    counts = [(len(row.get("matrices") or [row["name"]]), row["form"] != "dense") for row in rows]
    return Totals(
        kept=sum(row["bytes"] for row in rows) / whole if whole else 1.0,
        matrices=sum(count for count, _ in counts),
        compressed=sum(count for count, smaller in counts if smaller),
    )
