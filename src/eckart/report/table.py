"""A profile as a table in the terminal: a line for each kind of matrix, or for every matrix."""

from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from eckart.spectra import Profile

from .budgets import choices
from .values import ends

COLUMNS = {
    "effective_rank": "effective rank",
    "effective_rank_fraction": "effective ÷ full",
    "stable_rank": "stable rank",
    "energy_rank_90": "90 % energy",
    "energy_rank_99": "99 % energy",
    "outliers": "outliers",
    "alpha": "alpha",
}
NARROW = ("effective_rank_fraction", "stable_rank", "energy_rank_90", "outliers")
"""What fits where the terminal is narrower than WIDE."""
WIDE = 110
EXTRA = ("intrinsic_dimension", "overlap_left", "overlap_right", "relative_norm", "intruders")


def render(profile: Profile, *, every: bool = False, console: Console | None = None) -> None:
    """Print a profile to the terminal.

    Args:
        profile: What was measured.
        every: A line for every matrix; else a line for every kind of matrix, with the median over the layers and,
            for the effective rank, its range. A narrow terminal gets fewer columns.
        console: Where to print; None prints to stdout.
    """
    console = console or Console()
    wide = console.width >= WIDE
    shown = COLUMNS if wide else {key: COLUMNS[key] for key in NARROW}
    for of in profile.kinds:
        rows = profile.rows(of)
        extra = [key for key in EXTRA if any(r.get(key) is not None for r in rows)]
        table = Table(title=f"{of} of {profile.source}: {len(rows)} matrices, {profile.mode}", title_justify="left")
        table.add_column("matrix", no_wrap=not wide, overflow="fold")
        if wide:
            table.add_column("m × n", justify="right", no_wrap=True)
        for head in (*shown.values(), *(key.replace("_", " ") for key in extra)):
            table.add_column(head, justify="right")
        for line in _lines(rows, (*shown, *extra), every):
            table.add_row(*(line if wide else [line[0], *line[2:]]))
        console.print(table)
    for sentence in reading(profile):
        console.print(sentence, highlight=False)


def reading(profile: Profile) -> list[str]:
    """What the numbers say, in sentences: where the rank is lowest, and what a budget would keep.

    Example:
        >>> import torch, eckart
        >>> layer = torch.nn.Linear(64, 64, bias=False)
        >>> layer.weight.data = torch.diag(torch.tensor([1.0] * 8 + [0.0] * 56))
        >>> for sentence in reading(eckart.measure(torch.nn.Sequential(layer))):
        ...     print(sentence)
        Lowest effective rank: 0 (weights), 8.0 of 64.
        At 80 % of the parameters, ranks chosen by energy keep 100.0 % of it; 0 of 1 matrices stay dense.
    """
    rows = [r for r in profile.rows() if isinstance(r["effective_rank_fraction"], float) and r["norm"]]
    if not rows:
        return []
    lowest = min(rows, key=lambda r: r["effective_rank_fraction"])
    full = min(lowest["m"], lowest["n"])
    sentences = [f"Lowest effective rank: {lowest['name']} ({lowest['of']}), {lowest['effective_rank']:.1f} of {full}."]
    if profile.kinds[0] == "weights":
        (choice,) = choices(profile, [0.8])
        if choice.energy is not None:
            sentences.append(
                f"At 80 % of the parameters, ranks chosen by energy keep {100 * choice.energy:.1f} % of it; "
                f"{choice.dense} of {len(choice.ranks)} matrices stay dense."
            )
    return sentences


def _lines(rows: list[dict[str, Any]], columns: tuple[str, ...], every: bool) -> list[list[str]]:
    if every:
        return [[r["name"], f"{r['m']} × {r['n']}", *(cell([r.get(c)]) for c in columns)] for r in rows]
    groups: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for r in rows:
        groups.setdefault((r["kind"], r["m"], r["n"]), []).append(r)
    lines = []
    for (kind, m, n), group in groups.items():
        label = kind if len(group) == 1 else f"{kind}  × {len(group)}"
        lines.append([label, f"{m} × {n}", *(cell([r.get(c) for r in group], c == "effective_rank") for c in columns)])
    return lines


def cell(values: list[Any], spread: bool = False, digits: int = 2) -> str:
    """The median of the known values; an interval where they are intervals; a dash where nothing is known.

    Args:
        values: Numbers, intervals and None.
        spread: Show the lowest and the highest too.
        digits: After the point, of what is below 10 and not whole.
    """
    known = [v for v in values if v is not None]
    if not known:
        return "–"
    lows, highs = zip(*map(ends, known), strict=True)
    low, high = _short(median(lows), digits), _short(median(highs), digits)
    if low != high:
        return f"{low} – {high}"
    if spread and len(known) > 1:
        return f"{low}  [{_short(min(lows), digits)} – {_short(max(highs), digits)}]"
    return low


def _short(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if abs(value) < 10 and value != int(value) else f"{value:.0f}"
