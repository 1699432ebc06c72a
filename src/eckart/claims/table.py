"""Claims and their outcomes as tables of the command line."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .claim import Claim
from .outcome import Outcome
from .words import HALVES, MARKS, sentence

COLOURS = {"holds": "green", "fails": "red", "error": "red"}


def render_claims(claims: Sequence[Claim], *, console: Console | None = None) -> None:
    """Print what claims there are, half by half.

    Args:
        claims: in order.
        console: where to print; None takes stdout.

    Example:
        >>> claim = Claim("X1", "Halving", "Half of 3 is 1.5.", "ours", "dynamics", print)
        >>> render_claims([claim], console=Console(width=60, color_system=None))  # doctest: +NORMALIZE_WHITESPACE
        Dynamics: low rank at every step of gradient descent
          X1   Halving                        Half of 3 is 1.5.
    """
    console = console or Console()
    for half, words in HALVES.items():
        members = [claim for claim in claims if claim.half == half]
        if not members:
            continue
        table = Table(box=None, show_header=False, padding=(0, 1, 0, 2))
        table.add_column(no_wrap=True, style="bold")
        table.add_column(width=28)
        table.add_column()
        for claim in members:
            table.add_row(claim.id, Text(claim.title), Text(claim.statement))
        console.print(words, style="bold", highlight=False)
        console.print(table)


def render_outcomes(outcomes: Sequence[Outcome], *, console: Console | None = None) -> None:
    """Print a line for each outcome, then every check that fails; all the checks where there is one outcome.

    Args:
        outcomes: what `run_many` gave.
        console: where to print; None takes stdout.

    Example:
        >>> from eckart.claims import Check, Result
        >>> claim = Claim("X1", "Halving", "Half of 3 is 1.5.", "ours", "dynamics", print)
        >>> outcome = Outcome(claim, 0, "small", 0.1, Result([Check("half of 3", 1.5, 1.4)], []))
        >>> render_outcomes([outcome], console=Console(width=80, color_system=None))  # doctest: +NORMALIZE_WHITESPACE
          X1   ✗ fails   0 of 1 checks   0.1 s   Halving
        <BLANKLINE>
        X1 Halving
          ✗ half of 3: measured 1.4, predicted = 1.5
    """
    console = console or Console()
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 2))
    for _ in range(3):
        table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column()
    for o in outcomes:
        verdict = Text(MARKS[o.verdict], style=COLOURS[o.verdict])
        table.add_row(o.claim.id, verdict, _held(o), f"{o.seconds:.1f} s", Text(o.claim.title))
    console.print(table)
    for o in outcomes:
        if o.verdict != "holds" or len(outcomes) == 1:
            _details(o, console)


def render_claim(claim: Claim, *, console: Console | None = None) -> None:
    """Print all that a claim says of itself.

    Example:
        >>> claim = Claim("X1", "Halving", "Half of 3 is 1.5.", "ours", "dynamics", print, regime="numbers")
        >>> render_claim(claim, console=Console(width=60, color_system=None))  # doctest: +NORMALIZE_WHITESPACE
        X1 Halving
        <BLANKLINE>
        Half of 3 is 1.5.
        <BLANKLINE>
        source   ours
        holds    numbers
        run it   eckart claims run X1
    """
    console = console or Console()
    console.print(f"{claim.id} {claim.title}\n", style="bold", markup=False, highlight=False)
    console.print(f"{claim.statement}\n", markup=False, highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 3, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    for key, words in (("source", claim.source), ("holds", claim.regime or "always")):
        table.add_row(key, Text(words))
    table.add_row("run it", f"eckart claims run {claim.id}")
    console.print(table)


def _held(outcome: Outcome) -> str:
    if outcome.result is None:
        return "–"
    checks = outcome.result.checks
    return f"{sum(check.holds for check in checks)} of {len(checks)} checks"


def _details(outcome: Outcome, console: Console) -> None:
    console.print(f"\n{outcome.claim.id} {outcome.claim.title}", style="bold", markup=False, highlight=False)
    if outcome.result is None:
        console.print(f"  ! {outcome.error}", style=COLOURS["error"], markup=False, highlight=False)
        return
    for check in sorted(outcome.result.checks, key=lambda check: check.holds):
        mark, colour = ("✓", None) if check.holds else ("✗", COLOURS["fails"])
        console.print(f"  {mark} {sentence(check)}", style=colour, markup=False, highlight=False)
    if outcome.result.note:
        console.print(f"  {outcome.result.note}", markup=False, highlight=False)
