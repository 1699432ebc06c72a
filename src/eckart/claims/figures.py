"""A claim's figure, from the panels of its result: what was measured as lines and points, what theory says dashed.

The same result gives the same bytes: the SVG holds no date, no version and no random id, so that a figure kept beside
the documentation changes only when its numbers do.
"""

import io
import re
from html import escape
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eckart.nn.files import atomic_write

from .claim import Line, Panel, Result
from .looks import COLOURS, INK, in_columns, looks, mark
from .notation import lower

DOTTED = 40  # a line of at most so many points shows them
STYLE: dict[Any, Any] = {"svg.hashsalt": "eckart", "svg.fonttype": "none", "font.size": 9.5} | dict.fromkeys(
    ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK
)


def draw(result: Result, path: str | Path | None = None, *, force: bool = False) -> Figure:
    """Draw the panels of a result side by side.

    Args:
        result: what a claim's run returned.
        path: where to save the figure too (.svg, .png, .pdf); None saves nothing.
        force: replace a file that is already there.

    Returns:
        The figure, which belongs to no window and to no pyplot state.

    Raises:
        ValueError: the result has no panels.
        FileExistsError: `path` exists and `force` is false.

    Example:
        >>> from eckart.claims import Check, Line, Panel
        >>> lines = [Line("σ_1", [0, 1], [0.0, 2.0]), Line("theory", [0, 1], [0.0, 2.0], "dashed")]
        >>> panel = Panel("growth", "step", "σ", lines)
        >>> [axes] = draw(Result([Check("σ_1 at the end", 2.0, 2.0)], [panel])).axes
        >>> [line.get_linestyle() for line in axes.lines]
        ['-', '--']
    """
    if not result.panels:
        raise ValueError("result: it has no panels, so there is nothing to draw")
    with rc_context(STYLE):
        figure = Figure(figsize=(4.6 * len(result.panels), 4.0), layout="constrained")
        for panel, axes in zip(result.panels, figure.subplots(1, len(result.panels), squeeze=False)[0], strict=True):
            _panel(axes, panel)
        if path is not None:
            kind = Path(path).suffix.removeprefix(".") or "png"
            with atomic_write(path, force=force) as beside:
                figure.savefig(beside, format=kind, dpi=160, metadata=_silent(kind))
    return figure


def inline_svg(result: Result, name: str, words: str) -> str:
    """The figure as an `<svg>` element for an HTML page, with the page's colours.

    Args:
        result: what a claim's run returned.
        name: goes before every id in it, since a page holds several figures.
        words: what the figure shows, for those who do not see it.

    Returns:
        svg: its colours are the page's variables --line-0, --line-1, …, its ink the colour of the text.

    Example:
        >>> from eckart.claims import Check, Line, Panel
        >>> result = Result([Check("x", 1.0, 1.0)], [Panel("growth", "t", "σ", [Line("σ_1", [0, 1], [0, 2])])])
        >>> svg = inline_svg(result, "T1", "σ_1 grows from 0 to 2")
        >>> svg.startswith('<svg role="img" aria-label="σ_1 grows from 0 to 2"'), "var(--line-0)" in svg, "http" in svg
        (True, True, False)
    """
    with rc_context(STYLE):
        file = io.StringIO()
        draw(result).savefig(file, format="svg", transparent=True, metadata=_silent("svg"))
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", file.getvalue(), flags=re.DOTALL)
    view = re.search(r'viewBox="([^"]*)"', svg)
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(url\(#|xlink:href="#)', rf"\1{name}-", body).replace("xlink:href", "href")
    for i, colour in enumerate(COLOURS):
        body = body.replace(colour, f"var(--line-{i})")
    body = re.sub(
        r"(?<=: )#[0-9a-f]{6}", r"color-mix(in srgb, \g<0>, white var(--lift))", body
    )  # shades, lighter on black
    body = body.replace(INK, "currentColor")
    return f'<svg role="img" aria-label="{escape(words)}" viewBox="{view[1] if view else ""}">{body}'


def describe(panel: Panel) -> str:
    """A panel in words: what is drawn over what, and where each line begins and ends.

    Example:
        >>> describe(Panel("Growth", "step", "σ", [Line("σ_1", [0, 9], [0.0, 2.0])], log="y"))
        'Growth: σ (logarithmic) over step. σ_1: from 0 at 0 to 2 at 9.'
    """
    x, y = (
        f"{words} (logarithmic)" if axis in panel.log else words for axis, words in (("x", panel.x), ("y", panel.y))
    )
    lines = [
        f"{line.label}{' (theory)' if line.style == 'dashed' else ''}: "
        f"from {line.y[0]:.3g} at {line.x[0]:.3g} to {line.y[-1]:.3g} at {line.x[-1]:.3g}."
        for line in panel.lines
        if len(line.x)
    ]
    return " ".join([f"{panel.title}: {y} over {x}.", *lines])


def _panel(axes: Axes, panel: Panel) -> None:
    beside_theory = any(line.style == "dashed" for line in panel.lines)
    for index, (line, colour, marker) in enumerate(zip(panel.lines, *looks(panel.lines), strict=True)):
        above = sum(other.style == "points" for other in panel.lines[index + 1 :])
        _line(axes, line, colour, marker, beside_theory, above)
    axes.set(xlabel=lower(panel.x), ylabel=lower(panel.y))
    axes.set_title(lower(panel.title), fontsize=10, loc="left")
    for axis, scale in (("x", axes.set_xscale), ("y", axes.set_yscale)):
        if axis in panel.log:
            scale("log", nonpositive="mask")
    mark(axes.xaxis, [x for line in panel.lines for x in line.x], log="x" in panel.log)
    if "y" in panel.log:
        mark(axes.yaxis, [y for line in panel.lines for y in line.y], log=True)
    axes.grid(color="#888888", alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.lines:
        _legend(axes, panel)


def _legend(axes: Axes, panel: Panel) -> None:
    """Below the axes, where it hides no data; what was measured left of the theories that go with it."""
    handles, labels = axes.get_legend_handles_labels()
    order = list(range(len(labels)))
    longest = max(len(line.label) for line in panel.lines)
    columns = 3 if longest <= 12 else 2 if longest <= 30 else 1
    if in_columns(panel.lines) and columns > 1:
        order.sort(key=lambda i: panel.lines[i].style == "dashed")
        columns = 2
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "handlelength": 2.8}
    axes.legend(
        [handles[i] for i in order], [labels[i] for i in order],
        fontsize=8, ncols=columns, columnspacing=1.2, frameon=False, **place,
    )  # fmt: skip


def _line(axes: Axes, line: Line, colour: str, marker: str, beside_theory: bool, above: int) -> None:
    if line.style == "points":
        every = max(len(line.x) // 25, 1) if len(line.x) > DOTTED else 1
        size = 4.5 + above  # larger than those drawn over it, so that all are seen where they agree
        axes.plot(line.x, line.y, marker, label=lower(line.label), color=colour, markersize=size, markevery=every)
    elif line.style == "dashed":  # over what was measured, and thinner, so that both are seen where they agree
        axes.plot(line.x, line.y, "--", label=lower(line.label), color=colour, linewidth=1.6, zorder=3)
    else:
        every = max(len(line.x) // 8, 1) if len(line.x) > DOTTED else 1
        width, alpha = (3.0, 0.6) if beside_theory else (2.0, 0.9)
        look: dict[str, Any] = {
            "marker": marker,
            "markevery": every,
            "markersize": 4.5,
            "linewidth": width,
            "alpha": alpha,
        }
        axes.plot(line.x, line.y, "-", label=lower(line.label), color=colour, **look)


def _silent(kind: str) -> dict[str, None]:
    """What a file of this kind would say about when and by what it was made."""
    return dict.fromkeys({"svg": ("Date", "Creator"), "png": ("Software",), "pdf": ("CreationDate",)}.get(kind, ()))
