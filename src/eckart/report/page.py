"""One self-contained HTML page of a profile: it opens from disk, needs no network, and loads nothing."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import BaseLoader, Environment, StrictUndefined
from markupsafe import Markup

from eckart.nn.files import atomic_write

from .budgets import Choice, choices, source
from .payload import embedded, glossary, sections

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
    page = page_text(profile, title=title, budgets=budgets)
    with atomic_write(path, force=force) as beside:
        beside.write_text(page, encoding="utf-8")
    return Path(path)


def page_text(profile: "Profile", *, title: str | None, budgets: Sequence[float]) -> str:
    """The page's text; see `html`."""
    found = sections(profile)
    chosen = choices(profile, budgets)
    words = glossary(found)
    data = {
        "sections": found,
        "columns": {key: {"label": c.label, "words": c.words, "reading": c.reading} for key, c in words.items()},
        "budgets": [{"budget": c.budget, "ranks": c.ranks} for c in chosen if c.ranks],
        "ranked": source(profile),
    }
    # The title may be a path; the heading shows its last part and the facts below show it whole.
    heading = title or profile.source.rstrip("/").rpartition("/")[2] or profile.source
    environment = Environment(loader=BaseLoader(), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(_asset("template.html")).render(
        title=heading,
        profile=profile,
        totals=_totals(profile, found),
        sections=found,
        choices=chosen,
        kinds=_kinds(chosen),
        glossary=words,
        facts=_facts(profile),
        left_out=profile.details.get("left_out") or {},
        style=Markup(_asset("page.css")),
        script=Markup("\n".join(map(_asset, SCRIPTS))),
        data=Markup(embedded(data)),
    )


def _asset(name: str) -> str:
    return (files(__package__) / "assets" / name).read_text(encoding="utf-8")


def _totals(profile: "Profile", found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    rows = profile.rows(found[0]["of"])
    layers = {line["label"] for line in found[0]["map"]["lines"] if "cells" in line}
    totals = [(f"{len(rows):,}", "matrices")]
    if found[0]["of"] in ("weights", "updates"):
        totals.append((_rounded(sum(row["m"] * row["n"] for row in rows)), "parameters in them"))
    totals.append((f"{len(layers):,}", "layers"))
    if tokens := max((row.get("tokens") or 0 for row in profile.rows()), default=0):
        totals.append((f"{tokens:,}", "tokens seen"))
    known = "every singular value known" if profile.mode == "full" else "largest values and exact energy known"
    return [*totals, (profile.mode, known)]


def _rounded(count: int) -> str:
    """A count to four digits with a letter for its thousands, as 134.5 M."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.4g} {letter}"
    return str(count)


def _kinds(chosen: list[Choice]) -> list[str]:
    return list(dict.fromkeys(kind for choice in chosen for kind in choice.kinds or {}))


def _facts(profile: "Profile") -> dict[str, str]:
    details = {key: value for key, value in profile.details.items() if key != "left_out" and value is not None}
    return {"source": profile.source, "mode": profile.mode} | {
        key.replace("_", " "): str(v) for key, v in details.items()
    }
