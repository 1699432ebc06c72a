"""D2: a small convolutional net on digits moves its kernels in few directions, though K no longer bounds them."""

from typing import NamedTuple

import torch
from torch import nn

from eckart.claims.claim import Check, Claim, Panel, Result
from eckart.claims.data._digits import CLASSES, Change, load_digits, train
from eckart.claims.data._updates import (
    History,
    leading_share,
    looks,
    noise_share,
    noise_stable_rank,
    overlap_at,
    overlap_panel,
    recorded,
    share_panel,
    spectrum_panel,
    stable_rank,
)
from eckart.nn import Progress
from eckart.spectra import Recorder


class Size(NamedTuple):
    """Channels of the three convolutions; steps, samples of a step, learning rate and momentum."""

    channels: tuple[int, int, int] = (32, 64, 64)
    steps: int = 300
    batch: int = 64
    rate: float = 0.05
    momentum: float = 0.9


SIZES = {"small": Size(), "paper": Size(channels=(64, 128, 128), steps=2000)}
KERNELS = {"3": "kernel 2", "6": "kernel 3"}  # the matrices' names; kernel 1 has 9 columns, fewer than 2K
OUTPUT = "9"


def run(seed: int, size: str, *, progress: Progress | None = None, change: Change | None = None) -> Result:
    """Train with SGD and record every matrix, a kernel (out, in, 3, 3) as (out, 9·in).

    Args:
        seed: of the split and the batches; the weights are drawn by torch's own generator.
        size: a key of `SIZES`.
        progress: called with (done, total, label).
        change: what is done to each matrix's gradient before the optimizer's step.
    """
    s = SIZES[size]
    digits = load_digits(torch.Generator().manual_seed(seed))
    model = _network(s.channels)
    recorder = Recorder(model, rank=2 * CLASSES)
    optimizer = torch.optim.SGD(model.parameters(), lr=s.rate, momentum=s.momentum)
    generator = torch.Generator().manual_seed(seed)
    course = train(model, digits, optimizer, steps=s.steps, batch=s.batch, generator=generator, change=change)
    history = recorded(recorder, course, looks(s.steps), progress, "a convolutional net on digits")
    accuracy = digits.accuracy(model)
    return Result(_checks(history, accuracy), _panels(history), _note(history, accuracy))


def _network(channels: tuple[int, int, int]) -> nn.Sequential:
    """Three 3×3 convolutions on 8×8, 8×8 and 4×4 positions, and a linear classifier."""
    a, b, c = channels
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        *(nn.Conv2d(1, a, 3, padding=1), nn.GELU()),
        *(nn.Conv2d(a, b, 3, padding=1), nn.GELU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(b, c, 3, padding=1), nn.GELU()),
        *(nn.Flatten(), nn.Linear(16 * c, CLASSES)),
    )


def _checks(history: History, accuracy: float) -> list[Check]:
    rank = 2 * CLASSES
    outside = {name: max(1 - leading_share(now, rank) for now in history[name]) for name in KERNELS}
    shapes = {name: history[name][0].shape for name in KERNELS}
    beside = max(outside[name] / (1 - noise_share(shapes[name], rank)) for name in KERNELS)
    stable = max(stable_rank(now) / noise_stable_rank(shapes[name]) for name in KERNELS for now in history[name])
    early = min(overlap_at(history[name], 1 / 3, CLASSES) for name in KERNELS)
    first = max(1 - leading_share(history[name][0], CLASSES) for name in KERNELS)
    return [
        Check("held-out accuracy", 0.9, accuracy, relation="≥"),
        Check("energy outside the leading 2K directions, worst kernel and step", 0.2, max(outside.values()), 0, "≤"),
        Check("the same, beside a random update's", 0.35, beside, relation="≤"),
        Check("stable rank, beside a random update's, worst kernel and step", 0.4, stable, relation="≤"),
        Check("overlap of the leading K directions at a third of the way with the final ones", 0.65, early, 0, "≥"),
        Check("stops: energy of the first step outside K directions", 0.05, first, relation="≥"),
    ]


def _panels(history: History) -> list[Panel]:
    seen = history["6"]
    ends = {"first step": seen[0], "all steps": seen[-1]}
    return [
        spectrum_panel(KERNELS["6"], seen, (1, 2, 3, 5, 7, 10, 15, 20)),
        overlap_panel({label: history[name] for name, label in KERNELS.items()}, CLASSES),
        share_panel(f"How many directions hold the update of {KERNELS['6']}", ends, 2 * CLASSES),
    ]


def _note(history: History, accuracy: float) -> str:
    share = min(leading_share(now, 2 * CLASSES) for name in KERNELS for now in history[name])
    noise = max(noise_share(history[name][0].shape, 2 * CLASSES) for name in KERNELS)
    first = min(leading_share(history[name][0], CLASSES) for name in KERNELS)
    return (
        f"While the net learns (held-out accuracy {accuracy:.1%}), 2K = {2 * CLASSES} directions hold at least "
        f"{share:.0%} of each kernel's update at every recorded step; of a random update {noise:.0%}. The theory's K "
        "stops here: a kernel is used at many positions, each with its own gradient, and K directions hold "
        f"{first:.0%} of the first step, where in an MLP they hold all but a few thousandths."
    )


CLAIM = Claim(
    id="D2",
    title="Updates of a convolutional net on digits",
    statement=(
        "A small convolutional net trained by SGD moves each kernel, as a matrix (out, in·9), in few directions at "
        "every step, far fewer than a random update has, and finds the leading ones early."
    ),
    source="arXiv 2503.19859, Figure 1; the data and the network are ours",
    half="data",
    regime="Few, but not K: a kernel's gradient sums over positions, and its first step has more than K directions.",
    run=run,
)
