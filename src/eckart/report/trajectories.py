"""How the weights moved over a training run: the overview's Figure 1 (arXiv 2503.19859) from a Recorder's rows."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .drawing import named, save, spread

SHOWN = 4  # matrices, one under the other, that one page holds legibly
FIRST, LAST = "#21918c", "#b5367a"  # told apart with every kind of colour vision, and by their markers


def trajectory(
    rows: Sequence[dict[str, Any]],
    path: str | Path | None = None,
    *,
    names: str | Sequence[str] | None = None,
    force: bool = False,
) -> Figure:
    """Draw the leading singular values of W(t) − W(0), and how far its leading subspace turned, over the steps.

    Args:
        rows: what `Recorder.rows()` returned.
        path: where to save the figure too (.png, .svg, .pdf); None saves nothing.
        names: the matrices to draw, one or several; None takes up to four, spread evenly over the model.
        force: replace a file that is already there.

    Returns:
        The figure, which belongs to no window and to no pyplot state: for each matrix, on the left its leading
        singular values, on the right the angles, in degrees, of its leading subspace to those at the first and at the
        last step. A step at which the matrix had not moved has no angle, and the line has a gap there.

    Raises:
        ValueError: no rows, or no matrix of such a name.
        FileExistsError: `path` exists and `force` is false.

    Example:
        >>> import torch, eckart
        >>> from eckart.report import trajectory
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
        >>> _ = torch.nn.init.eye_(model[0].weight)
        >>> recorder = eckart.Recorder(model, rank=1)
        >>> for t in (10, 20):
        ...     model[0].weight.data[0, 0] += 3.0
        ...     recorder.step(t)
        >>> left, right = trajectory(recorder.rows()).axes
        >>> left.lines[0].get_ydata().tolist()
        [3.0, 6.0]
    """
    history: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        history.setdefault(row["name"], []).append(row)
    if not history:
        raise ValueError("rows: empty; call recorder.step(t) during training, then give recorder.rows()")
    chosen = spread(list(history), SHOWN) if names is None else named(names, history)
    figure = Figure(figsize=(11, 0.5 + 2.7 * len(chosen)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr, call-arg]
    for name, (left, right) in zip(chosen, figure.subplots(len(chosen), 2, squeeze=False), strict=True):
        _values(left, history[name])
        _angles(right, history[name])
        left.set_title(name, loc="left", fontsize=11, fontweight="bold")
        for axes in (left, right):
            _style(axes, history[name], last=name == chosen[-1])
    figure.axes[0].set_title("σᵢ of W(t) − W(0)", loc="right", fontsize=9, color="0.35")
    figure.axes[1].set_title("angle of its leading subspace to …", loc="left", fontsize=9, color="0.35")
    if path is not None:
        save(figure, path, force=force)
    return figure


def _values(axes: Axes, history: list[dict[str, Any]]) -> None:
    steps, count = [row["step"] for row in history], max(len(row["values"]) for row in history)
    for i in range(count):
        S = [row["values"][i] if i < len(row["values"]) else math.nan for row in history]
        label = f"σ{i + 1}".translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")) if i in (0, count - 1) else None
        colour = colormaps["viridis"](0.88 * i / max(count - 1, 1))
        axes.plot(steps, S, color=colour, label=label, lw=1.4, marker=_dot(steps), ms=3)
    axes.set_ylabel("singular value")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=9, frameon=False, loc="upper left")


def _angles(axes: Axes, history: list[dict[str, Any]]) -> None:
    steps = [row["step"] for row in history]
    ends = (
        ("angle_to_first", "that of the first step", FIRST, "o"),
        ("angle_to_last", "that of the last step", LAST, "s"),
    )
    for key, label, colour, marker in ends:
        degrees = [math.nan if row[key] is None else math.degrees(row[key]) for row in history]
        axes.plot(steps, degrees, color=colour, label=label, lw=1.6, marker=_dot(steps, marker), ms=4)
    axes.set(ylabel="degrees", ylim=(-3, 93), yticks=range(0, 91, 30))
    axes.legend(fontsize=9, frameon=False, loc="best")


def _dot(steps: list[int], marker: str = "o") -> str | None:
    """A marker where the steps are few; a line alone where dots would touch."""
    return marker if len(steps) <= 40 else None


def _style(axes: Axes, history: list[dict[str, Any]], *, last: bool) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.02)
    if last:
        axes.set_xlabel("step t")
