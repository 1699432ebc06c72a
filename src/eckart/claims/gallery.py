"""One self-contained HTML page of claims that were run: the verdicts, and for each claim its figure and its numbers.

It opens from disk, loads nothing and runs no script. Its look is the report's (`eckart.report`), plus what is here.
"""

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined
from markupsafe import Markup

from eckart.nn.files import atomic_write

from .figures import describe, inline_svg
from .notation import typeset
from .outcome import Outcome
from .words import HALVES, MARKS, number, slack


def write_gallery(outcomes: Sequence[Outcome], path: str | Path, *, force: bool = False) -> Path:
    """Write the outcomes of claims as one HTML file.

    Args:
        outcomes: what `run_many` gave; their order is kept within each half of the overview.
        path: where to write; missing parent folders are made.
        force: replace a file that is already there.

    Returns:
        The path of the page. `gallery.html#T1` opens it at one claim.

    Raises:
        ValueError: there are no outcomes.
        FileExistsError: `path` exists and `force` is false.

    Example:
        >>> import tempfile
        >>> from eckart.claims import Check, Claim, Result, run_many
        >>> def halve(seed, size, *, progress=None):
        ...     return Result([Check("half of 3", 1.5, 3 / 2)], [])
        >>> claim = Claim("X1", "Halving", "Half of 3 is 1.5.", "ours", "dynamics", halve)
        >>> page = write_gallery(list(run_many([claim])), Path(tempfile.mkdtemp()) / "gallery.html")
        >>> "✓ holds" in page.read_text(encoding="utf-8")
        True
    """
    if not outcomes:
        raise ValueError("outcomes: empty, so there is nothing to show; run at least one claim")
    text = _text(outcomes)
    with atomic_write(path, force=force) as beside:
        beside.write_text(text, encoding="utf-8")
    return Path(path)


def _text(outcomes: Sequence[Outcome]) -> str:
    environment = Environment(loader=BaseLoader(), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    halves = [(words, [o for o in outcomes if o.claim.half == half]) for half, words in HALVES.items()]
    return environment.from_string(_asset(__package__, "gallery.html")).render(
        style=Markup(_asset("eckart.report", "page.css") + _asset(__package__, "gallery.css")),
        halves=[(words, members) for words, members in halves if members],
        totals=_totals(outcomes),
        figures={o.claim.id: _figure(o) for o in outcomes},
        marks=MARKS,
        number=number,
        slack=slack,
        linked=_linked,
        typeset=typeset,
        facts=_facts(outcomes),
    )


def _asset(package: str | None, name: str) -> str:
    return (files(package or "eckart.claims") / "assets" / name).read_text(encoding="utf-8")


def _figure(outcome: Outcome) -> dict[str, Any] | None:
    """The figure of an outcome, and the same in words; None where there is none."""
    if outcome.result is None or not outcome.result.panels:
        return None
    words = [typeset(describe(panel)) for panel in outcome.result.panels]
    svg = inline_svg(outcome.result, outcome.claim.id, f"Figure of claim {outcome.claim.id}; its words follow below")
    return {"svg": Markup(svg), "words": words, "panels": len(words)}


def _linked(source: str) -> Markup:
    """A source, with its arXiv ids as links: the only addresses on the page, followed only when clicked."""
    parts = re.split(r"(\d{4}\.\d{4,5})", source)
    escaped = [Markup.escape(part) for part in parts]
    ids = [f'<a href="https://arxiv.org/abs/{part}">{part}</a>' if i % 2 else part for i, part in enumerate(escaped)]
    return Markup("".join(ids))


def _totals(outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    count = [o.verdict for o in outcomes].count
    checks = [check for o in outcomes if o.result is not None for check in o.result.checks]
    held = sum(check.holds for check in checks)
    totals = [(f"{count('holds')} of {len(outcomes)}", "claims hold"), (f"{held} of {len(checks)}", "checks hold")]
    if count("error"):
        totals.append((str(count("error")), "could not be run"))
    return [*totals, (f"{sum(o.seconds for o in outcomes):.0f} s", "of computing")]


def _facts(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """What the outcomes were made with; several values where they differ."""
    facts: dict[str, dict[str, None]] = {}
    for o in outcomes:
        made = {"seed": o.seed, "size": o.size, **o.versions, "threads": o.threads}
        for key, value in made.items():
            facts.setdefault(key, {})[str(value)] = None
    return {key: ", ".join(values) for key, values in facts.items()}
