"""How the lines of a panel look: a colour and a marker each, and what a short axis is marked with."""

import math
from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.axis import Axis
from matplotlib.colors import to_hex
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from .claim import Line

# Told apart with every kind of colour vision (after Okabe and Ito), on white; the page has its own for black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b5508f", "#56b4e9", "#c58a00")
MARKERS = "osD^vP*X"
INK = "#22272c"  # axes and words; the page makes it the colour of its text
SHORT = 50.0  # a logarithmic axis that spans less is marked 1, 2, 5, in plain numbers


def looks(lines: Sequence[Line]) -> tuple[list[str], list[str]]:
    """A colour and a marker for each line; lines that outnumber the colours are shades, in their order.

    A single theory is drawn in ink. Of several, the i-th of as many theories as measurements has the i-th
    measurement's colour; if there are fewer or more, one that comes right after a measurement has that one's.

    Example:
        >>> measured, theory = Line("a", [0, 1], [0, 1]), Line("a, theory", [0, 1], [0, 1], "dashed")
        >>> looks([measured, measured, theory, measured, theory])
        (['#0072b2', '#d55e00', '#d55e00', '#009e73', '#009e73'], ['o', 's', 's', 'D', 'D'])
    """
    partners = _partners(lines)
    theories = [i for i, line in enumerate(lines) if line.style == "dashed"]
    inked = theories if len(theories) == 1 else []
    own = [i for i in range(len(lines)) if partners[i] == i and i not in inked]
    shades = list(COLOURS)
    if len(own) > len(COLOURS):
        shades = [to_hex(colormaps["viridis"](0.25 + 0.57 * i / (len(own) - 1))) for i in range(len(own))]
    place = {line: i for i, line in enumerate(own)} | dict.fromkeys(inked, 0)
    colours = [INK if i in inked else shades[place[partner]] for i, partner in enumerate(partners)]
    return colours, [MARKERS[place[partner] % len(MARKERS)] for partner in partners]


def in_columns(lines: Sequence[Line]) -> bool:
    """Whether the legend is two columns, what was measured and what theory says of it."""
    theories = sum(line.style == "dashed" for line in lines)
    return 1 < theories < len(lines)


def mark(axis: Axis, values: Sequence[float], *, log: bool) -> None:
    """Whole numbers where all values are, and plain ones on a logarithmic axis too short for powers of ten."""
    finite = [float(value) for value in values if math.isfinite(value) and (value > 0 or not log)]
    if not finite:
        return
    if log and max(finite) / min(finite) < SHORT:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    elif not log and all(value.is_integer() for value in finite):
        axis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True))


def _partners(lines: Sequence[Line]) -> list[int]:
    """For each line the one whose colour it has: itself, or for a theory what was measured."""
    measured = [i for i, line in enumerate(lines) if line.style != "dashed"]
    theories = [i for i, line in enumerate(lines) if line.style == "dashed"]
    partners = list(range(len(lines)))
    if len(theories) == 1:
        return partners
    for i, theory in enumerate(theories):
        if len(theories) == len(measured):
            partners[theory] = measured[i]
        elif theory - 1 in measured:
            partners[theory] = theory - 1
    return partners
