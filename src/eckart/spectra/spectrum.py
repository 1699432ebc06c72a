"""The spectrum of one matrix in either mode, and of many matrices side by side."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from eckart import linalg
from eckart.nn import Progress

from .entry import Entry, complete_entry, rounding_of
from .memory import release_freed

TOP = 16
"""How many singular values `fast` mode computes."""

MODES = ("full", "fast")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Source:
    """A matrix that can be read when its turn comes.

    Attributes:
        name: The matrix's name.
        shape: (m, n).
        read: Gives the matrix, (m, n), in any float dtype; called once, in a worker.
        extra: Columns that are known before the matrix is read.
        flipped: A live matrix that files hold as its transpose (transformers' Conv1D).
    """

    name: str
    shape: tuple[int, int]
    read: Callable[[], Tensor]
    extra: dict[str, Any] = field(default_factory=dict)
    flipped: bool = False


def entry_of(
    W: Tensor,  # (m, n)
    *,
    name: str,
    of: str,
    mode: str,
    rounding: float | None = None,
    extra: dict[str, Any] | None = None,
) -> Entry:
    """Measure one matrix: every singular value (`full`), or the largest 16 and the exact energy (`fast`).

    `rounding` is that of W in its own dtype unless it is given.
    """
    shape = (W.shape[0], W.shape[1])
    if mode == "full":
        S = linalg.singular_values(W)
        energy = float(S.square().sum())
    else:
        S, total = linalg.top_singular_values(W, min(TOP, *shape))
        energy = float(total)
    if rounding is None:
        rounding = rounding_of(energy**0.5, shape, W.dtype)
    if mode == "full":
        return complete_entry(name, of, shape, S, rounding, extra)
    return Entry(name, of, shape, S.detach().to("cpu", torch.float64), energy, rounding, extra or {})


def measure_all(
    sources: Sequence[Source],
    function: Callable[[Source], Result],
    *,
    progress: Progress | None = None,
    bounded: bool = False,
    workers: int | None = None,
) -> list[Result]:
    """Apply `function` to each source, side by side, naming the matrix in any error.

    Args:
        sources: What to read and measure.
        function: Called with each source.
        progress: Called with (done, total, name) after each matrix.
        bounded: Keep the elements in flight below those of the largest matrix, so that a checkpoint is scanned in
            memory that does not grow with the number of workers.
        workers: How many at a time; None is one for each of torch's threads.

    Raises:
        ValueError: A matrix can't be measured (a NaN, say): the message begins with its name.
    """

    def named(source: Source) -> Result:
        try:
            return function(source)
        except ValueError as error:
            raise ValueError(f"{source.name}: {error}") from error
        finally:
            if bounded:
                release_freed()

    # Just below the largest: it runs alone then, with all the threads.
    capacity = max((_elements(s) for s in sources), default=1) - 0.5 if bounded else None
    results = linalg.map_side_by_side(named, sources, cost=_elements, capacity=capacity, workers=workers)
    return list(_reported(results, sources, progress))


def _elements(source: Source) -> int:
    return source.shape[0] * source.shape[1]


def _reported(results: Iterable[Result], sources: Sequence[Source], progress: Progress | None) -> Iterator[Result]:
    for done, (result, source) in enumerate(zip(results, sources, strict=True), start=1):
        if progress is not None:
            progress(done, len(sources), source.name)
        yield result
