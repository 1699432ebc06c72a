"""What a Recorder saw of W(t) − W(0), beside what an update without structure would show.

Without structure means a Gaussian matrix D (m, n) of the same shape: its stable rank tends to mn/(√m + √n)², its
leading subspaces are uniformly drawn, and two drawn r-dimensional subspaces of R^n overlap by r/n on average. A closer
null keeps what a layer reads and draws its errors: a first step that is no lower in rank owes it to the inputs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import sqrt

import torch
from torch import Tensor, nn

from eckart.claims.claim import Line, Panel
from eckart.linalg import overlap, singular_values
from eckart.nn import Progress
from eckart.spectra import Recorder
from eckart.spectra.recorder import Snapshot

History = Mapping[str, Sequence[Snapshot]]  # a matrix's name → its snapshots


def looks(steps: int, count: int = 20) -> set[int]:
    """When to look: at some early steps, and at `count` evenly spaced ones."""
    return {t for t in (1, 3, 10, 30) if t < steps} | {steps * k // count for k in range(1, count + 1)} - {0}


def recorded(
    recorder: Recorder, course: Iterable[int], times: set[int], progress: Progress | None, label: str
) -> History:
    """Go through a training, letting the recorder see the weights at some steps; what it saw."""
    for t in course:
        if t in times:
            recorder.step(t)
            if progress is not None:
                progress(t, max(times), label)
    return recorder.snapshots


def leading_share(snapshot: Snapshot, rank: int) -> float:
    """The share of the update's energy in its `rank` leading directions, of those that were recorded."""
    return float(snapshot.values[:rank].square().sum()) / snapshot.energy


def stable_rank(snapshot: Snapshot) -> float:
    """‖D‖_F² / ‖D‖_2² of the update."""
    return snapshot.energy / float(snapshot.values[0]) ** 2


def overlaps(history: Sequence[Snapshot], rank: int) -> list[float]:
    """How much the leading subspaces at each step share with those at the last, the lesser of left and right."""
    last = history[-1]
    return [
        min(float(overlap(now.left, last.left, rank, rank)), float(overlap(now.right, last.right, rank, rank)))
        for now in history
    ]


def overlap_at(history: Sequence[Snapshot], part: float, rank: int) -> float:
    """That overlap at a part of the way, from 0 to 1."""
    index = next(k for k, now in enumerate(history) if now.step >= part * history[-1].step)
    return overlaps(history, rank)[index]


def noise_stable_rank(shape: tuple[int, int]) -> float:
    """mn/(√m + √n)², the stable rank of a large Gaussian matrix."""
    m, n = shape
    return m * n / (sqrt(m) + sqrt(n)) ** 2


def noise_share(shape: tuple[int, int], rank: int) -> float:
    """The share of a Gaussian matrix's energy in its leading directions, from one draw."""
    S = singular_values(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    return float(S[:rank].square().sum() / S.square().sum())


def random_errors(model: nn.Module, names: Iterable[str], forward: Callable[[], object]) -> dict[str, Tensor]:
    """Singular values of each linear layer's gradient if its errors were Gaussian: what its inputs alone explain."""
    generator = torch.Generator().manual_seed(0)
    found = {}

    def watch(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def look(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs = args[0].detach().flatten(0, -2).float()
            errors = torch.randn(len(inputs), layer.get_parameter("weight").shape[0], generator=generator)
            found[name] = singular_values(errors.mT @ inputs)

        return layer.register_forward_pre_hook(look)

    handles = [watch(name, model.get_submodule(name)) for name in names]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return found


def spectrum_panel(name: str, history: Sequence[Snapshot], shown: Sequence[int]) -> Panel:
    """Some singular values of the update over time."""
    times = [now.step for now in history]
    lines = [Line(f"σ_{k}", times, [float(now.values[k - 1]) for now in history]) for k in shown]
    return Panel(f"What the update of {name} is made of", "step t", "singular value of W(t) − W(0)", lines, "y")


def overlap_panel(history: History, rank: int) -> Panel:
    """The overlap with the final leading subspaces over time, and that of a drawn one."""
    lines = [Line(name, [now.step for now in seen], overlaps(seen, rank)) for name, seen in history.items()]
    seen = next(iter(history.values()))
    n = min(seen[0].shape)
    drawn = Line("drawn subspaces", [seen[0].step, seen[-1].step], [rank / n] * 2, "dashed")
    title = f"The leading {rank} directions are found early"
    return Panel(title, "step t", "overlap with those at the end", [*lines, drawn])


def share_panel(title: str, snapshots: Mapping[str, Snapshot], count: int) -> Panel:
    """The share of the energy in the leading 1, …, `count` directions of one matrix, and that of a Gaussian update."""
    shape = next(iter(snapshots.values())).shape
    ranks = list(range(1, count + 1))
    lines = [Line(label, ranks, [leading_share(seen, r) for r in ranks]) for label, seen in snapshots.items()]
    noise = Line("random update", ranks, [noise_share(shape, r) for r in ranks], "dashed")
    return Panel(title, "leading directions", "share of the update's energy", [*lines, noise])
