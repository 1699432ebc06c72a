"""D1: an MLP on digits moves each weight matrix in few directions, at every step, and finds them early."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from eckart.claims.claim import Check, Claim, Panel, Result
from eckart.claims.data._digits import CLASSES, Change, Digits, load_digits, train
from eckart.claims.data._updates import (
    History,
    leading_share,
    looks,
    noise_share,
    overlap_at,
    overlap_panel,
    random_errors,
    recorded,
    share_panel,
    spectrum_panel,
)
from eckart.linalg import numerical_rank
from eckart.nn import Progress
from eckart.spectra import Recorder


class Size(NamedTuple):
    """Width of the three hidden layers; steps, samples of a step, learning rate and momentum."""

    width: int = 128
    steps: int = 600
    batch: int = 128
    rate: float = 0.1
    momentum: float = 0.9


SIZES = {"small": Size(), "paper": Size(width=512, steps=3000)}
HIDDEN = {"0": "layer 1", "2": "layer 2", "4": "layer 3"}
OUTPUT = "6"
Activation = Callable[[], nn.Module]


def run(
    seed: int,
    size: str,
    *,
    progress: Progress | None = None,
    activation: Activation = nn.GELU,
    change: Change | None = None,
) -> Result:
    """Train with SGD and record every matrix; then one step from the same start with ReLU, and one with Adam.

    Args:
        seed: of the split and the batches; the weights are drawn by torch's own generator.
        size: a key of `SIZES`.
        progress: called with (done, total, label).
        activation: takes the place of GELU.
        change: what is done to each matrix's gradient before the optimizer's step.
    """
    s = SIZES[size]
    digits = load_digits(torch.Generator().manual_seed(seed))
    model = _network(s.width, activation)
    drawn = torch.randint(len(digits.labels), (s.batch,), generator=torch.Generator().manual_seed(seed))
    null = random_errors(model, HIDDEN, lambda: model(digits.images[drawn]))  # of the first batch
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def first_step(act: Activation, optimizer: Callable[..., torch.optim.Optimizer]) -> History:
        other = _network(s.width, act)
        other.load_state_dict(start)
        return _history(other, digits, optimizer(other.parameters(), lr=1e-3), s, 1, seed, change)

    sgd = torch.optim.SGD(model.parameters(), lr=s.rate, momentum=s.momentum)
    history = _history(model, digits, sgd, s, s.steps, seed, change, progress)
    firsts = {
        "SGD": {name: history[name][:1] for name in HIDDEN},
        "SGD, ReLU": first_step(nn.ReLU, torch.optim.SGD),
        "Adam": first_step(activation, torch.optim.Adam),
    }
    accuracy = digits.accuracy(model)
    checks = [*_of_course(history, accuracy), *_of_first_step(firsts, null)]
    return Result(checks, _panels(history, firsts), _note(history, firsts, accuracy))


def _network(width: int, activation: Activation) -> nn.Sequential:
    hidden = [part for n in (64, width, width) for part in (nn.Linear(n, width), activation())]
    return nn.Sequential(*hidden, nn.Linear(width, CLASSES))


def _history(
    model: nn.Module,
    digits: Digits,
    optimizer: torch.optim.Optimizer,
    s: Size,
    steps: int,
    seed: int,
    change: Change | None,
    progress: Progress | None = None,
) -> History:
    """Train, and see the updates at some steps."""
    recorder = Recorder(model, rank=2 * CLASSES)
    generator = torch.Generator().manual_seed(seed)
    course = train(model, digits, optimizer, steps=steps, batch=s.batch, generator=generator, change=change)
    return recorded(recorder, course, looks(steps), progress, "an MLP on digits")


def _of_course(history: History, accuracy: float) -> list[Check]:
    """Few directions at every recorded step, found early."""
    rank = 2 * CLASSES
    output = history[OUTPUT][-1]
    outside = {name: [1 - leading_share(now, rank) for now in history[name]] for name in HIDDEN}
    beside = max(max(outside[name]) / (1 - noise_share(history[name][0].shape, rank)) for name in HIDDEN)
    early = min(overlap_at(history[name], 1 / 3, CLASSES) for name in HIDDEN)
    return [
        Check("held-out accuracy", 0.9, accuracy, relation="≥"),
        # The gradients of the logits of a sample sum to zero over the classes, so one direction never moves.
        Check(
            "rank of the last layer's update: K − 1",
            CLASSES - 1,
            int(numerical_rank(output.values, output.shape, eps=1e-6)),
        ),
        Check(
            "energy outside the leading 2K directions, worst layer and step",
            0.02,
            max(map(max, outside.values())),
            relation="≤",
        ),
        Check("the same, beside a random update's", 0.05, beside, relation="≤"),
        Check(
            "overlap of the leading K directions at a third of the way with the final ones", 0.85, early, relation="≥"
        ),
    ]


def _of_first_step(firsts: dict[str, History], null: dict[str, Tensor]) -> list[Check]:
    """Rank K at first, but for kinks in the activation and for Adam; `null` has the same inputs and random errors."""
    outside = {
        label: max(1 - leading_share(history[name][0], CLASSES) for name in HIDDEN) for label, history in firsts.items()
    }
    tails = {name: float(S[CLASSES:].square().sum() / S.square().sum()) for name, S in null.items()}
    beside = max((1 - leading_share(firsts["SGD"][name][0], CLASSES)) / tail for name, tail in tails.items())
    return [
        Check("energy of the first step outside K directions", 0.02, outside["SGD"], relation="≤"),
        Check("the same, beside random errors on the same inputs, worst layer", 0.05, beside, relation="≤"),
        Check(
            "stops: the same with ReLU, times that with GELU", 3.0, outside["SGD, ReLU"] / outside["SGD"], relation="≥"
        ),
        Check("stops: the same with Adam", 0.1, outside["Adam"], relation="≥"),
    ]


def _panels(history: History, firsts: dict[str, History]) -> list[Panel]:
    middle = {label: first["2"][0] for label, first in firsts.items()}
    ends = {f"{label}: first step": now for label, now in middle.items()} | {"SGD: all steps": history["2"][-1]}
    return [
        spectrum_panel(HIDDEN["2"], history["2"], (1, 2, 3, 5, 7, 10, 15, 20)),
        overlap_panel({label: history[name] for name, label in HIDDEN.items()}, CLASSES),
        share_panel(f"How many directions hold the update of {HIDDEN['2']}", ends, 2 * CLASSES),
    ]


def _note(history: History, firsts: dict[str, History], accuracy: float) -> str:
    share = min(leading_share(now, 2 * CLASSES) for name in HIDDEN for now in history[name])
    adam, relu = (
        max(1 - leading_share(firsts[label][name][0], CLASSES) for name in HIDDEN) for label in ("Adam", "SGD, ReLU")
    )
    return (
        f"While the network learns (held-out accuracy {accuracy:.1%}), 2K = {2 * CLASSES} directions hold at least "
        f"{share:.1%} of each hidden layer's update at every recorded step. Where it stops: Adam divides each entry by "
        f"its own size, so its first step is nearly the sign of the gradient, with {adam:.0%} of the energy outside K "
        f"directions; with ReLU it is {relu:.1%}. In the first layer the share falls slowly as the training goes on."
    )


CLAIM = Claim(
    id="D1",
    title="Updates of an MLP on digits",
    statement=(
        "An MLP with a smooth activation, trained by SGD on K classes, moves each hidden layer in about 2K directions "
        "at every step, and finds the leading ones early; the last layer's update has rank K − 1."
    ),
    source="arXiv 2503.19859, Figure 1, and 2602.06208; the data, the network and the rank K − 1 are ours",
    half="data",
    regime="SGD and smooth activations; the first step of Adam, and ReLU, spread over more directions.",
    run=run,
)
