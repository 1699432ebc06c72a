"""Watch a long training now and then, and say how far it is."""

from collections.abc import Iterator
from itertools import islice
from typing import TypeVar

from eckart.nn import Progress

State = TypeVar("State")


class Watch:
    """Looks at every so many steps of one or more trainings, and reports the steps of all of them.

    Args:
        progress: called with (done, total, label) at each look; None is quiet.
        total: steps of all the trainings together.

    Example:
        >>> watch = Watch(lambda done, total, label: print(f"{label}: {done}/{total}"), total=4)
        >>> [t for t, _ in watch(iter(range(100)), steps=4, every=2, label="count")]
        count: 0/4
        count: 2/4
        count: 4/4
        [0, 2, 4]
    """

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(
        self, course: Iterator[State], *, steps: int, every: int, label: str, first: int = 0
    ) -> Iterator[tuple[int, State]]:
        """Yield (t, state) at t = 0, every, 2·every, …, at each of the `first` steps, and at the last."""
        for t, state in enumerate(islice(course, steps + 1)):
            if t <= first or t % every == 0 or t == steps:
                if self._progress is not None:
                    self._progress(self._done + t, self._total, label)
                yield t, state
        self._done += steps
