"""Progress of `eckart claims run` on stderr: one bar for all the claims with the time left, one for the present one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

if TYPE_CHECKING:  # it takes torch along, which --help must not wait for
    from eckart.claims import Moment, Outcome


@contextmanager
def claim_bars(keep: Path | None) -> Iterator[tuple[Callable[["Moment"], None], Callable[["Outcome"], None]]]:
    """Two bars, driven by moments, and what to tell outcomes to; an interrupted run says how to go on.

    What does not hold is told at once, and in a log, where no bars are seen, everything is.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        overall, own = bars.add_task("claims", words=""), bars.add_task("", words="")

        def watch(moment: "Moment") -> None:
            share = moment.done / moment.total if moment.total else 0.0
            words = f"{moment.finished}/{moment.count}  {_left(moment.left)}"
            bars.update(overall, completed=moment.finished + share, total=moment.count, words=words)
            words = f"{moment.done}/{moment.total}  {moment.label[-40:]}" if moment.total else ""
            bars.update(own, description=moment.claim.id, completed=share, total=1.0, words=words)

        def tell(outcome: "Outcome") -> None:
            if outcome.verdict != "holds" or not bars.console.is_terminal:
                words = f"{outcome.claim.id} {outcome.verdict} after {outcome.seconds:.1f} s"
                bars.console.print(words, markup=False, highlight=False)

        try:
            yield watch, tell
        except KeyboardInterrupt:
            bars.stop()
            kept = f"the same command goes on from what {keep} holds" if keep else "with --keep DIR it could go on"
            typer.echo(f"interrupted; {kept}", err=True)
            raise


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f"about {timedelta(seconds=round(seconds))} left"
