"""How far a run of many claims is, and how long the rest will take."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from .claim import Claim


@dataclass(frozen=True)
class Moment:
    """A moment of a run: `finished` of `count` claims are done, and the present one is at `done` of `total`.

    `left` is an estimate of the seconds until all are done; None while there is nothing to judge by.
    """

    claim: Claim
    finished: int
    count: int
    done: int
    total: int
    label: str
    left: float | None


class Pace:
    """Keeps the time of a run: the present claim goes on at its own pace, those to come take the mean of the others.

    Args:
        count: how many claims will be run.
        clock: seconds, rising.

    Example:
        >>> now = iter([0.0, 2.0, 8.0, 8.0, 9.0])
        >>> pace, seen = Pace(2, clock=lambda: next(now)), []
        >>> claim = Claim("X1", "", "It runs.", "ours", "data", print)
        >>> pace.begin(claim, seen.append)
        >>> pace.report(1, 4, "step")
        >>> seen[-1].left  # 2 s for a quarter: 6 s more for this claim, and 8 s for the next
        14.0
    """

    def __init__(self, count: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._count, self._clock = count, clock
        self._lasted: list[float] = []

    def begin(self, claim: Claim, watch: Callable[[Moment], None] | None) -> None:
        """A claim begins; `watch` hears of it."""
        self._claim, self._watch, self._start = claim, watch, self._clock()
        self._tell(0, 0, "", self._left(0.0, 0.0))

    def report(self, done: int, total: int, label: str) -> None:
        """The present claim is at `done` of `total`."""
        elapsed = self._clock() - self._start
        self._tell(done, total, label, self._left(done / max(total, 1), elapsed))

    def end(self) -> None:
        """The present claim is done."""
        self._lasted.append(self._clock() - self._start)

    def _left(self, share: float, elapsed: float) -> float | None:
        if share > 0:
            whole = elapsed / share
        elif self._lasted:
            whole = sum(self._lasted) / len(self._lasted)
        else:
            return None
        mean = (sum(self._lasted) + whole) / (len(self._lasted) + 1)
        return max(whole - elapsed, 0.0) + mean * (self._count - len(self._lasted) - 1)

    def _tell(self, done: int, total: int, label: str, left: float | None) -> None:
        if self._watch is not None:
            self._watch(Moment(self._claim, len(self._lasted), self._count, done, total, label, left))
