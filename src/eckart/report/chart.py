"""A small line chart as SVG inside a page: it needs no script, follows the page's colours, and prints."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.ticker import LogLocator, MaxNLocator

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 24, 46, 46
STYLES = 4  # of lines, told apart by their dashes too: page.css has them


class Line(NamedTuple):
    """Points (x, y) that belong together, and what they are."""

    label: str
    points: tuple[tuple[float, float], ...]


def chart(lines: Sequence[Line], *, x: str, y: str) -> Markup:
    """Draw lines over one pair of axes; y is logarithmic where it spans more than a factor of 10, else from 0.

    Args:
        lines: what to draw, each with a point or more, all finite.
        x: what the horizontal axis is.
        y: what the vertical axis is.

    Returns:
        An svg element, with a title that says in words what it shows.

    Example:
        >>> drawn = chart([Line("error", ((0.6, 0.3), (0.8, 0.1)))], x="kept", y="error")
        >>> drawn.count("<circle"), "error: 0.3 at 0.6, 0.1 at 0.8" in drawn
        (2, True)
    """
    xs = sorted({point[0] for line in lines for point in line.points})
    ys = [point[1] for line in lines for point in line.points]
    logarithmic = min(ys) > 0 and max(ys) > 10 * min(ys)
    bend: Callable[[float], float] = math.log10 if logarithmic else float
    low = min(ys) if logarithmic else min(0.0, *ys)
    across, up = _scale(xs[0], xs[-1], LEFT + 12, WIDTH - RIGHT), _scale(bend(low), bend(max(ys)), HEIGHT - BOTTOM, TOP)
    ticks = (LogLocator(subs=(1, 2, 5)) if logarithmic else MaxNLocator(5)).tick_values(low, max(ys))
    parts = [_level(value, up(bend(value))) for value in ticks if low <= value <= max(ys)]
    parts += [_word(across(value), HEIGHT - BOTTOM + 18, f"{value:.3g}", "middle") for value in xs]
    parts += [_word(4, 14, y), _word(WIDTH - RIGHT, HEIGHT - 6, x, "end")]
    for i, line in enumerate(lines):
        parts.append(_curve([(across(a), up(bend(b))) for a, b in sorted(line.points)], i % STYLES))
        parts.append(_word(WIDTH - RIGHT, 14 + 15 * i, line.label, "end", f"word-{i % STYLES}"))
    words = "; ".join(f"{each.label}: {', '.join(f'{b:.4g} at {a:.3g}' for a, b in each.points)}" for each in lines)
    return Markup('<svg class="chart" role="img" viewBox="0 0 {} {}"><title>{}</title>{}</svg>').format(
        WIDTH, HEIGHT, words, Markup("").join(parts)
    )


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """From values to places; a single value stands in the middle."""
    return lambda value: start + ((value - low) / (high - low) if high > low else 0.5) * (end - start)


def _level(value: float, at: float) -> Markup:
    """A horizontal line of the grid, with its value."""
    line = Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(LEFT, WIDTH - RIGHT, at, at)
    return line + _word(LEFT - 8, at + 4, f"{value:g}", "end")


def _word(x: float, y: float, text: str, anchor: str = "start", style: str = "axis") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(style, x, y, anchor, text)


def _curve(places: Sequence[tuple[float, float]], style: int) -> Markup:
    """A line through places, with a dot at each."""
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    dots = (Markup('<circle class="dot-{}" cx="{:.1f}" cy="{:.1f}" r="4"/>').format(style, a, b) for a, b in places)
    return Markup('<polyline class="line-{}" points="{}"/>').format(style, path) + Markup("").join(dots)
