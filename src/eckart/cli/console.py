"""What the commands share: progress on stderr, checks of the output paths before the work begins."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:  # it takes torch along, which --help must not wait for
    import torch

    from eckart.nn import Progress as Report


@contextmanager
def progress_bar(*, shown: bool = True) -> Iterator["Report"]:
    """A bar on stderr, driven by (done, total, label); stdout stays clean for the result."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as bar:
        task = bar.add_task("")

        def report(done: int, total: int, label: str) -> None:
            bar.update(task, completed=done, total=total, description=label[-48:])

        yield report


def require_free(*, files: Sequence[Path | None] = (), folders: Sequence[Path | None] = (), force: bool) -> None:
    """Fail before the work, not after it, where a result could not be written or would overwrite something."""
    wanted = [path for path in (*files, *folders) if path is not None]
    if len({path.resolve() for path in wanted}) < len(wanted):
        raise ValueError(f"two results go to one path among {', '.join(map(str, wanted))}; give each its own")
    for path in wanted:
        if (blocking := next((parent for parent in path.resolve().parents if parent.is_file()), None)) is not None:
            raise ValueError(f"{path} can't be written: {blocking} is a file, not a folder")
        if path in files and path.is_dir():
            raise ValueError(f"{path} is a folder; give a file's name")
        if path in folders and path.is_file():
            raise ValueError(f"{path} is a file; give a folder's name")
        empty = path in folders and path.is_dir() and not any(path.iterdir())
        if path.exists() and not empty and not force:
            raise FileExistsError(f"{path} exists; pass --force to replace it, or another path")


def tell(sentence: str) -> None:
    """Say something beside the result, on stderr."""
    typer.echo(sentence, err=True)


def listed(value: str | None) -> list[str] | None:
    """Patterns that were given with commas between them."""
    return None if value is None else [part.strip() for part in value.split(",") if part.strip()]


def rank_given(value: str) -> int:
    """A rank from the command line."""
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"--rank: {value!r}; give a whole number of at least 1, or auto")
    return int(value)


def dtype_given(name: str) -> "torch.dtype":
    """A type of weights from the command line."""
    import torch

    known = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    if name not in (*known, *known.values()):
        raise ValueError(f"--dtype: {name!r}; give float32, bf16 or fp16")
    return getattr(torch, known.get(name, name))
