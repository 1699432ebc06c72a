"""What every figure needs: names that exist, and a file that is written whole or not at all."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from eckart.nn.files import atomic_write


def spread(ordered: Sequence[str], count: int) -> list[str]:
    """At most `count` of the names, evenly spread over their order, both ends among them.

    Example:
        >>> spread("abcdefg", 3), spread("ab", 3)
        (['a', 'd', 'g'], ['a', 'b'])
    """
    steps = min(count, len(ordered))
    return [ordered[round(i * (len(ordered) - 1) / max(steps - 1, 1))] for i in range(steps)]


def named(names: str | Sequence[str], known: Iterable[str]) -> list[str]:
    """The wanted names as a list; ValueError where one is unknown."""
    wanted, there = [names] if isinstance(names, str) else list(names), list(known)
    if missing := [name for name in wanted if name not in there]:
        raise ValueError(f"names: no matrix {missing[0]!r}; there are {there[:8]}{' ...' if len(there) > 8 else ''}")
    if not wanted:
        raise ValueError("names: empty; give at least one name, or None to have them chosen")
    return wanted


def save(figure: Figure, path: str | Path, *, force: bool) -> None:
    """Write the figure in the format of the path's suffix (PNG where there is none)."""
    with atomic_write(path, force=force) as beside:
        figure.savefig(beside, format=Path(path).suffix.removeprefix(".") or "png", dpi=160)
