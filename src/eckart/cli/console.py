"""What the commands share: progress on stderr, checks of the output paths before the work begins."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr, driven by (done, total, label); stdout stays clean for the result."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")

        def report(done: int, total: int, label: str) -> None:
            bar.update(task, completed=done, total=total, description=label[-48:])

        yield report


def require_free(*paths: Path | None, force: bool) -> None:
    """Fail before the work, not after it, where a result would overwrite a file."""
    for path in paths:
        if path is not None and path.exists() and not force:
            raise FileExistsError(f"{path} exists; pass --force to replace it, or another path")
