"""Run claims: one, or many in a row that can be interrupted and go on.

Each claim's outcome is kept as one JSON file, written whole as soon as the claim has run. What a folder already holds
for the same seed, size and version of eckart is not run again; a claim that raised is.
"""

import json
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import eckart
from eckart.nn import Progress
from eckart.nn.files import atomic_write, read_json

from .claim import SIZES, Claim, Result
from .outcome import Outcome
from .pace import Moment, Pace
from .registry import load
from .threads import one_thread


def run(
    claim: str | Claim,
    *,
    seed: int = 0,
    size: str = "small",
    progress: Progress | None = None,
    folder: Path | None = None,
) -> Result:
    """Run one claim.

    Args:
        claim: its id, or a claim of your own.
        seed: ≥ 0; the same seed gives the same numbers on the same machine.
        size: "small" takes seconds, "paper" the sizes of the paper.
        progress: called with (done, total, label).
        folder: where a claim that can go on after an interruption keeps its state; None keeps none.

    Returns:
        result: its checks (predicted, measured), its figure as data, and a note.

    Raises:
        ValueError: an unknown id, size, or a negative seed.

    Example:
        >>> from eckart.claims import Check
        >>> def halve(seed, size, *, progress=None):
        ...     return Result([Check("half of 3", 1.5, 3 / 2)], [])
        >>> run(Claim("X1", "Halving", "Half of 3 is 1.5.", "ours", "dynamics", halve)).holds
        True
    """
    claim = load(claim) if isinstance(claim, str) else claim
    _check(seed, size)
    state = {"folder": folder} if claim.resumable and folder is not None else {}
    # Modules start, and masks are drawn, from torch's own generator: seed it for the claim, and hand it back after.
    with one_thread(when=not claim.parallel), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return claim.run(seed, size, progress=progress, **state)


def run_many(
    claims: Sequence[str | Claim],
    *,
    seed: int = 0,
    size: str = "small",
    keep: Path | None = None,
    fresh: bool = False,
    watch: Callable[[Moment], None] | None = None,
) -> Iterator[Outcome]:
    """Run claims one after the other; one that raises is an outcome too, and the others go on.

    Args:
        claims: ids, or claims of your own.
        seed, size: as for `run`.
        keep: a folder for the outcomes; what it holds for this seed, size and version is taken from there.
        fresh: run everything again, and forget the state that interrupted claims left in `keep`.
        watch: called as the work goes on, with the claim, its progress and an estimate of the time left.

    Returns:
        (one by one) the outcome of each claim, in the order given.

    Raises:
        ValueError: an unknown id, size, or a negative seed.

    Example:
        >>> from eckart.claims import Check
        >>> def broken(seed, size, *, progress=None):
        ...     raise RuntimeError("no data")
        >>> [outcome] = run_many([Claim("X1", "", "It runs.", "ours", "data", broken)])
        >>> outcome.verdict, outcome.error.split(" (")[0]
        ('error', 'RuntimeError: no data')
    """
    _check(seed, size)
    chosen = [load(each) if isinstance(each, str) else each for each in claims]
    kept = {} if fresh or keep is None else {c.id: found for c in chosen if (found := _kept(keep, c, seed, size))}
    pace = Pace(sum(claim.id not in kept for claim in chosen))
    for claim in chosen:
        if claim.id in kept:
            yield kept[claim.id]
            continue
        pace.begin(claim, watch)
        folder = None if keep is None else _place(keep, claim, seed, size).with_suffix(f".state-{eckart.__version__}")
        if fresh and folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        outcome = _attempt(claim, seed, size, pace.report, folder)
        pace.end()
        if keep is not None:
            _write(_place(keep, claim, seed, size), outcome.to_json())
        if folder is not None and not outcome.error:
            shutil.rmtree(folder, ignore_errors=True)
        yield outcome


def _check(seed: int, size: str) -> None:
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")


def _attempt(claim: Claim, seed: int, size: str, progress: Progress, folder: Path | None) -> Outcome:
    start, result, error = time.perf_counter(), None, ""
    if folder is not None and claim.resumable:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        found = run(claim, seed=seed, size=size, progress=progress, folder=folder)
        result = Result.from_json(found.to_json())  # as it will be read again: numbers of Python, none of torch
    except Exception as raised:
        error = _told(raised)
    return Outcome(
        claim,
        seed,
        size,
        seconds=round(time.perf_counter() - start, 3),
        result=result,
        error=error,
        versions={"eckart": eckart.__version__, "torch": torch.__version__, "python": platform.python_version()},
        threads=torch.get_num_threads() if claim.parallel else 1,
    )


def _told(raised: Exception) -> str:
    """What was raised and where, in one line, with the remedy where a library is missing."""
    trace = raised.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})" if trace is not None else ""
    remedy = '; pip install "eckart[claims]"' if isinstance(raised, ModuleNotFoundError) else ""
    return f"{type(raised).__name__}: {' '.join(str(raised).split())}{remedy}{place}"


def _place(keep: Path, claim: Claim, seed: int, size: str) -> Path:
    return keep / f"{claim.id}-{size}-seed{seed}.json"


def _kept(keep: Path, claim: Claim, seed: int, size: str) -> Outcome | None:
    """What the folder holds of a claim, if this version of eckart made it and it is no error."""
    path = _place(keep, claim, seed, size)
    if not path.is_file():
        return None
    try:
        data = read_json(path)
    except ValueError as error:
        raise ValueError(f"{str(error).split(';')[0]}; remove it, or run with --fresh") from error
    outcome = Outcome.from_json(data, claim)
    return outcome if not outcome.error and outcome.versions.get("eckart") == eckart.__version__ else None


def _write(path: Path, data: dict[str, Any]) -> None:
    """As indented JSON whose lists of numbers take one line, since results are kept beside code and compared."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    text = re.sub(r"\[\n([^\[\]{}]*)\n\s*\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    with atomic_write(path, force=True) as beside:
        beside.write_text(text + "\n", encoding="utf-8")
