"""A profile as a matplotlib figure: spectra on log axes, and effective rank by layer."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .drawing import named, save, spread
from .values import ends, is_interval, middle

if TYPE_CHECKING:
    from eckart.spectra import Profile

SHOWN = 6  # spectra that one pair of axes holds legibly


def plot(
    profile: "Profile",
    names: str | Sequence[str] | None = None,
    path: str | Path | None = None,
    *,
    of: str | None = None,
    force: bool = False,
) -> Figure:
    """Draw spectra with their noise edges, and the effective rank of every matrix by layer.

    Args:
        profile: what `eckart.measure` returned.
        names: the matrices whose spectra are drawn; None takes six, from the lowest effective rank
            fraction to the highest.
        path: where to save the figure too (.png, .svg, .pdf); None saves nothing.
        of: which measurement to draw ("weights", "updates", ...); None takes the first that the profile holds.
        force: replace a file that is already there.

    Returns:
        The figure, which belongs to no window and to no pyplot state.

    Raises:
        ValueError: the profile holds no such measurement, or no matrix of such a name.
        FileExistsError: `path` exists and `force` is false.

    Example:
        >>> import torch, eckart
        >>> from eckart.report import plot
        >>> profile = eckart.measure(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 4)))
        >>> [axes.get_title() for axes in plot(profile).axes]
        ['Spectra (weights)', 'Effective rank by layer (weights)']
    """
    rows = profile.rows()
    of = of or (rows[0]["of"] if rows else "weights")
    chosen = {row["name"]: row for row in rows if row["of"] == of}
    if not chosen:
        raise ValueError(f"of: the profile holds no {of!r}, it holds {sorted({row['of'] for row in rows})}")
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _spectra(left, profile, of, [chosen[name] for name in _chosen(names, chosen)])
    _by_layer(right, of, list(chosen.values()))
    if path is not None:
        save(figure, path, force=force)
    return figure


def _chosen(names: str | Sequence[str] | None, rows: dict[str, dict[str, Any]]) -> list[str]:
    if names is not None:
        return named(names, rows)
    return spread(sorted(rows, key=lambda name: middle(rows[name]["effective_rank_fraction"])), SHOWN)


def _spectra(axes: Axes, profile: "Profile", of: str, rows: list[dict[str, Any]]) -> None:
    values = {entry.name: entry.values for entry in profile.entries if entry.of == of}
    for i, row in enumerate(rows):
        colour = colormaps["viridis"](0.9 * i / max(len(rows) - 1, 1))
        S = [value for value in values[row["name"]].tolist() if value > 0]
        axes.plot(range(1, len(S) + 1), S, color=colour, label=row["name"], marker="." if len(S) <= 64 else None)
        if row["noise_edge"] is not None:
            axes.axhline(row["noise_edge"], color=colour, linestyle=":", linewidth=0.9)
    axes.set(xscale="log", yscale="log", xlabel="index i", ylabel="singular value σᵢ  (dotted: noise edge)")
    axes.set_title(f"Spectra ({of})")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, frameon=False)


def _by_layer(axes: Axes, of: str, rows: list[dict[str, Any]]) -> None:
    kinds = list(dict.fromkeys(row["kind"] for row in rows if row["layer"] is not None))
    for i, kind in enumerate(kinds):
        line = [row for row in rows if row["kind"] == kind and row["layer"] is not None]
        layers = [row["layer"] for row in line]
        fractions = [row["effective_rank_fraction"] for row in line]
        colour = colormaps["viridis"](0.92 * i / max(len(kinds) - 1, 1))
        marker = "osD^vP*X"[i % 8]  # told apart without colour too
        axes.plot(
            layers, list(map(middle, fractions)), marker, ls="-", lw=1, ms=4, color=colour, label=kind or "weight"
        )
        if any(map(is_interval, fractions)):
            low, high = zip(*map(ends, fractions), strict=True)
            axes.fill_between(layers, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="layer", ylabel="effective rank ÷ min(m, n)", ylim=(0, 1))
    axes.set_title(f"Effective rank by layer ({of})")
    axes.grid(alpha=0.25)
    if kinds:
        axes.legend(fontsize=7, frameon=False, ncols=2)
