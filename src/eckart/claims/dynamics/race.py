"""Several networks trained side by side towards one matrix, each to the same recovery, and resumed bit for bit.

They train on one core and their time is that core's, not the wall's: what else the machine does must not decide.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from eckart.claims.threads import one_thread
from eckart.nn import Progress
from eckart.nn.files import read_header, read_tensor, save_safetensors
from eckart.theory import descend, product
from eckart.theory.descent import Slope

SAVE_EVERY = 60.0  # seconds


@dataclass
class Racer:
    """A network on its way: its weights, its learning rates, and the error ‖P − Φ‖/‖Φ‖ seen so far.

    Args:
        label: its name.
        weights: as they are now, first layer first.
        rates: one for each.
    """

    label: str
    weights: list[Tensor]
    rates: list[float]
    steps: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    clock: list[float] = field(default_factory=list)  # processor seconds of its own training

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.steps[-1]) if self.steps else 0

    @property
    def seconds(self) -> float:
        """Processor seconds of training."""
        return self.clock[-1] if self.clock else 0.0

    def to(self, dtype: torch.dtype) -> "Racer":
        """Itself, with weights of its own in another dtype."""
        self.weights = [W.to(dtype, copy=True) for W in self.weights]
        return self

    def advance(self, slope: Slope, steps: int) -> None:
        """Train for so many steps."""
        start = time.thread_time()
        *_, (self.weights, _) = islice(descend(self.weights, slope, rate=self.rates), steps + 1)
        self.clock.append(self.seconds + time.thread_time() - start)
        self.steps.append(self.step + steps)

    def look(self, target: Tensor) -> None:
        """Note the error where it stands."""
        P = product(self.weights).to(target.dtype)
        self.errors.append(float(torch.linalg.norm(P - target) / torch.linalg.norm(target)))


def race(
    racers: Sequence[Racer],
    slope: Slope,
    target: Tensor,
    *,
    goal: float,
    pace: tuple[int, int],
    progress: Progress | None = None,
    place: tuple[Path, str] | None = None,
) -> None:
    """Train in turns until each has reached the goal; the last one, which need not, stops with the one before it.

    Args:
        racers: changed in place.
        slope: their loss.
        target: Φ.
        goal: relative error at which one has arrived.
        pace: steps at most, and steps in a turn.
        progress: called with (done, total, label), in steps of all together.
        place: a file for the state, and a description of the run that it must be of; None keeps none.
    """
    with one_thread():
        _race(racers, slope, target, goal, pace, progress, place)


def _race(
    racers: Sequence[Racer],
    slope: Slope,
    target: Tensor,
    goal: float,
    pace: tuple[int, int],
    progress: Progress | None,
    place: tuple[Path, str] | None,
) -> None:
    limit, turn = pace
    if place is not None and place[0].is_file():
        _restore(racers, *place)
    saved = time.monotonic()
    for racer in racers:
        if not racer.errors:
            racer.steps.append(0.0)
            racer.clock.append(0.0)
            racer.look(target)
    while going := [racer for racer in racers if not _arrived(racer, racers, goal, limit)]:
        for racer in going:
            racer.advance(slope, turn)
            racer.look(target)
        if progress is not None:
            slowest = min(going, key=lambda r: r.step)
            progress(sum(r.step for r in racers), limit * len(racers), f"{slowest.label}, step {slowest.step}")
        if place is not None and time.monotonic() - saved > SAVE_EVERY:
            _save(racers, *place)
            saved = time.monotonic()
    if progress is not None:
        progress(limit * len(racers), limit * len(racers), "done")


def _arrived(racer: Racer, racers: Sequence[Racer], goal: float, limit: int) -> bool:
    if racer is racers[-1]:
        before = racers[-2]
        return racer.step >= before.step and _arrived(before, racers, goal, limit)
    return racer.errors[-1] <= goal or racer.step >= limit


def _save(racers: Sequence[Racer], file: Path, run: str) -> None:
    tensors = {f"{r.label}/{index}": W for r in racers for index, W in enumerate(r.weights)}
    for r in racers:
        tensors[f"{r.label}/course"] = torch.tensor([r.steps, r.errors, r.clock], dtype=torch.float64)
    save_safetensors(file, tensors, {"run": run}, force=True)


def _restore(racers: Sequence[Racer], file: Path, run: str) -> None:
    infos = read_header(file)
    found = _run_of(file)
    if found != run:
        raise ValueError(f"folder: {file} is of another run ({found}, not {run}); give an empty folder, or delete it")
    for r in racers:
        r.weights = [read_tensor(infos[f"{r.label}/{index}"]) for index in range(len(r.weights))]
        r.steps, r.errors, r.clock = read_tensor(infos[f"{r.label}/course"]).tolist()


def _run_of(file: Path) -> str:
    with safe_open(file, framework="pt") as opened:
        return (opened.metadata() or {}).get("run", "unknown")
