"""One self-contained HTML page of a profile: it opens from disk, needs no network, and loads nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .budgets import Choice, choices, source
from .columns import COLUMNS
from .payload import glossary, sections
from .sizes import rounded
from .templates import described, write_page

if TYPE_CHECKING:
    from eckart.spectra import Profile

SCRIPTS = ("base.js", "map.js", "spectrum.js", "table.js", "page.js")  # in this order, inside one function


def html(
    profile: "Profile",
    path: str | Path,
    *,
    title: str | None = None,
    budgets: Sequence[float] = (0.9, 0.8, 0.6, 0.4, 0.2),
    force: bool = False,
) -> Path:
    """Write a profile as one HTML file: the model as a map, every spectrum, suggested ranks, words for each column.

    Args:
        profile: what `eckart.measure` returned; a `full` one shows everything, a `fast` one shows ranges.
        path: where to write; missing parent folders are made.
        title: what the page is called; None takes the profile's source.
        budgets: kept shares of the parameters for which ranks are suggested, each in (0, 1].
        force: replace a file that is already there.

    Returns:
        The path of the page. `page.html#select=NAME` opens it at one matrix.

    Raises:
        ValueError: the profile holds no matrices.
        FileExistsError: `path` exists and `force` is false.

    Example:
        >>> import tempfile, torch, eckart
        >>> from eckart.report import html
        >>> profile = eckart.measure(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 4)))
        >>> page = html(profile, Path(tempfile.mkdtemp()) / "report.html", title="Two layers")
        >>> "<title>Two layers" in page.read_text(encoding="utf-8")
        True
    """
    if not profile.entries:
        raise ValueError("profile: it holds no matrices, so there is nothing to draw; measure a model first")
    found = sections(profile)
    chosen = choices(profile, budgets)
    words = glossary([key for section in found for key in section["columns"]] + ["suggested_rank"], COLUMNS)
    data = {
        "sections": found,
        "columns": described(words),
        "budgets": [{"budget": c.budget, "ranks": c.ranks} for c in chosen if c.ranks],
        "ranked": source(profile),
    }
    return write_page(
        "profile.html",
        path,
        data,
        SCRIPTS,
        force=force,
        kicker="low-rank profile",
        title=title or last_part(profile.source),
        profile=profile,
        totals=_totals(profile, found),
        choices=chosen,
        kinds=_kinds(chosen),
        glossary=words,
        facts=_facts(profile),
        left_out=profile.details.get("left_out") or {},
    )


def last_part(source: str) -> str:
    """A source as a heading shows it: it may be a path, which the facts below show whole."""
    return source.rstrip("/").rpartition("/")[2] or source


def _totals(profile: "Profile", found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    rows = profile.rows(found[0]["of"])
    layers = {line["label"] for line in found[0]["map"]["lines"] if "cells" in line}
    totals = [(f"{len(rows):,}", "matrices")]
    if found[0]["of"] in ("weights", "updates"):
        totals.append((rounded(sum(row["m"] * row["n"] for row in rows)), "parameters in them"))
    totals.append((f"{len(layers):,}", "layers"))
    if tokens := max((row.get("tokens") or 0 for row in profile.rows()), default=0):
        totals.append((f"{tokens:,}", "tokens seen"))
    known = "every singular value known" if profile.mode == "full" else "largest values and exact energy known"
    return [*totals, (profile.mode, known)]


def _kinds(chosen: list[Choice]) -> list[str]:
    return list(dict.fromkeys(kind for choice in chosen for kind in choice.kinds or {}))


def _facts(profile: "Profile") -> dict[str, str]:
    details = {key: value for key, value in profile.details.items() if key != "left_out" and value is not None}
    return {"source": profile.source, "mode": profile.mode} | {
        key.replace("_", " "): str(v) for key, v in details.items()
    }
