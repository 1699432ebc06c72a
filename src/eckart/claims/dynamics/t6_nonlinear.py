"""T6: a two-layer network with a smooth activation trains almost inside 2K directions; with ReLU it does not."""

from collections.abc import Sequence
from math import log10
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from eckart.claims.claim import Check, Claim, Line, Panel, Result
from eckart.claims.dynamics.course import Watch
from eckart.nn import Progress
from eckart.theory import (
    balanced_classes,
    compressed_rates,
    descend,
    energy_outside,
    low_rank_start,
    moving_block,
    nonlinear_regression,
    orthogonal_weights,
    product,
    tail_ratio,
    whiten,
)
from eckart.theory.nonlinear import Activation


class Size(NamedTuple):
    """K classes in n dimensions, width m; samples of a class (many, few); ε, η, steps to a fit and far beyond."""

    dimension: int = 32
    classes: int = 4
    width: int = 72
    many: int = 500
    few: int = 100
    eps: float = 1e-3
    rate: float = 0.5
    steps: int = 60
    beyond: int = 600


SIZES = {"small": Size(), "paper": Size()}
STARTS = (1e-4, 1e-3, 1e-2, 1e-1)  # ε, for the tail of the first gradient
OUTER = 1e-3  # γ of the low-rank layer


class Expected(NamedTuple):
    """What the theory says of an activation: the order in ε of the tail, and bounds on the tail and the energy."""

    activation: Activation
    order: int  # of the first derivative of φ after φ'(0) that is not zero, less one; 0 where φ' jumps
    tail: float
    outside: float


Regime = tuple[Expected, float]  # an activation, and the scale of the targets


class Task(NamedTuple):
    """One training problem and its start."""

    outer: Tensor  # W_2 (K, m)
    inputs: Tensor  # X (n, N), whitened
    targets: Tensor  # Y (K, N)
    weight: Tensor  # W_1(0) (m, n)


def run(seed: int, size: str, *, progress: Progress | None = None, activation: Activation = F.gelu) -> Result:
    """Look at the first gradient, train inside and outside the regime, and train a layer of rank 2K.

    Args:
        seed: of data and weights.
        size: a key of `SIZES`.
        progress: called with (done, total, label).
        activation: takes the place of GELU.
    """
    s = SIZES[size]
    cases = [
        Expected(activation, 1, 1e-4, 0.1),
        Expected(F.silu, 1, 1e-4, 0.1),
        Expected(torch.tanh, 2, 1e-6, 0.1),
        Expected(F.relu, 0, 0.1, 0.2),
    ]
    many, few = _task(s, s.many, seed), _task(s, s.few, seed)
    regimes = [(case, scale) for case in (cases[0], cases[1], cases[3]) for scale in (1.0, 0.1)]
    watch = Watch(progress, total=(len(cases) + 5) * s.steps + len(regimes) * s.beyond)

    tails = [_tails(many, s, case.activation) for case in cases]
    fits = [_outside(many, s, case.activation, s.steps, watch) for case in cases]
    beyond = {key: _outside(few, s, key[0].activation, s.beyond, watch, key[1]) for key in regimes}
    checks = [check for case, tail in zip(cases, tails, strict=True) for check in _of_gradient(case, tail)]
    checks += [_of_training(case, share) for case, share in zip(cases, fits, strict=True)]
    half = max(_outside(many, s, activation, s.steps, watch, leading=s.classes).values()) / max(fits[0].values())
    checks.append(Check(f"the same outside K × K directions ÷ 2K × 2K, {_name(activation)}", 1.0, half, 0.25))
    checks += _of_regime(beyond, s)
    checks += _of_low_rank(many, s, activation, watch)
    panels = [_tail_panel(cases, tails, s), _fit_panel(cases, fits), _regime_panel(beyond)]
    return Result(checks, panels, _note(cases, fits, beyond, s))


def _task(s: Size, samples: int, seed: int) -> Task:
    """A mixture of K Gaussians far apart, whitened."""
    generator = torch.Generator().manual_seed(seed)
    noise, targets, labels = balanced_classes(s.dimension, s.classes, samples, generator=generator)
    means = 2 * torch.randn(s.dimension, s.classes, generator=generator, dtype=torch.float64)
    [outer] = orthogonal_weights([s.width, s.classes], 1.0, generator=generator)
    [weight] = orthogonal_weights([s.dimension, s.width], s.eps, generator=generator)
    return Task(outer, whiten(noise + means[:, labels]), targets, weight)


def _tails(task: Task, s: Size, activation: Activation) -> list[float]:
    """σ_{K+1}/σ_1 of the first gradient, for each ε of `STARTS`."""
    slope = nonlinear_regression(task.outer, task.inputs, task.targets, activation)
    return [float(tail_ratio(slope(task.weight * (eps / s.eps))[1], s.classes)) for eps in STARTS]


def _outside(
    task: Task,
    s: Size,
    activation: Activation,
    steps: int,
    watch: Watch,
    scale: float = 1.0,
    leading: int | None = None,
) -> dict[int, float]:
    """Step → the share of the update's energy outside the block (or its leading directions), for targets × scale."""
    slope = nonlinear_regression(task.outer, task.inputs, scale * task.targets, activation)
    left, right = (Q[:, :leading] for Q in moving_block(slope(task.weight)[1], task.weight, s.classes))
    label = f"{_name(activation)}, {task.targets.shape[1]} samples, targets × {scale:g}"
    course = watch(descend([task.weight], slope, rate=s.rate), steps=steps, every=steps // 30, label=label)
    return {t: float(energy_outside(W - task.weight, left, right)) for t, ([W], _) in course if t}


def _of_gradient(case: Expected, tails: list[float]) -> list[Check]:
    at, name = STARTS.index(1e-3), _name(case.activation)
    order = log10(tails[at + 1] / tails[at])
    return [
        Check(f"σ_{{K+1}}/σ_1 of the first gradient, {name}", case.tail, tails[at], 0.0, "≤" if case.order else "≥"),
        Check(f"its power of ε, {name}", case.order, order, 0.05),
    ]


def _of_training(case: Expected, share: dict[int, float]) -> Check:
    name = f"energy outside the block up to the fit, {_name(case.activation)}"
    return Check(name, case.outside, max(share.values()), 0.0, "≤" if case.order else "≥")


def _of_regime(beyond: dict[Regime, dict[int, float]], s: Size) -> list[Check]:
    """Few samples and a training far beyond the fit: a smooth network leaves too, unless its targets are small."""
    checks = []
    for (case, scale), share in beyond.items():
        name = f"energy outside at step {s.beyond}, {_name(case.activation)}, targets × {scale:g}"
        if case.order and scale < 1:
            checks.append(Check(name, 0.05, share[s.beyond], relation="≤"))
        else:
            checks.append(Check(f"stops: {name}", 0.15, share[s.beyond], relation="≥"))
    return checks


def _of_low_rank(task: Task, s: Size, activation: Activation, watch: Watch) -> list[Check]:
    """The whole layer, and layers of rank 2K in the block and in a random one, trained alike."""
    slope = nonlinear_regression(task.outer, task.inputs, task.targets, activation)
    inside = low_rank_start(slope(task.weight)[1], task.weight, s.classes)
    widths = [s.dimension, 2 * s.classes, 2 * s.classes, s.width]
    right, core, left = orthogonal_weights(widths, 1.0, generator=torch.Generator().manual_seed(s.width))
    fixed = compressed_rates(1, s.rate)
    runs = {
        "the whole layer": ([task.weight], [s.rate]),
        "rank 2K in the block": (inside, fixed),
        "rank 2K in the block, whose bases train": (inside, compressed_rates(1, s.rate, OUTER)),
        "rank 2K in a random block": ([right, s.eps * core, left], fixed),
    }
    loss, correct = {}, {}
    for label, (weights, rate) in runs.items():
        course = watch(descend(weights, slope, rate=rate), steps=s.steps, every=s.steps, label=label)
        *_, (_, (weights, reached)) = course
        guess = task.outer @ activation(product(weights) @ task.inputs)
        loss[label] = float(reached)
        correct[label] = float((guess.argmax(dim=0) == task.targets.argmax(dim=0)).double().mean())
    whole, block, trained, drawn = runs
    return [
        Check(f"loss beside that of {whole}: {block}", 1.3, loss[block] / loss[whole], relation="≤"),
        Check(f"loss beside that of {whole}: {trained}", 1.15, loss[trained] / loss[whole], relation="≤"),
        Check(f"loss beside that of {whole}: {drawn}", 5.0, loss[drawn] / loss[whole], relation="≥"),
        Check(f"samples classified right: {block}", correct[whole], correct[block], 0.01, "≥"),
    ]


def _tail_panel(cases: Sequence[Expected], tails: Sequence[list[float]], s: Size) -> Panel:
    lines = [Line(_name(case.activation), STARTS, tail) for case, tail in zip(cases, tails, strict=True)]
    y = f"σ_{s.classes + 1} / σ_1 of G_1, K = {s.classes}"
    return Panel("The first gradient is of rank K, if φ is smooth", "scale ε of W_1(0)", y, lines, "xy")


def _fit_panel(cases: Sequence[Expected], fits: Sequence[dict[int, float]]) -> Panel:
    lines = [
        Line(_name(case.activation), list(share), list(share.values())) for case, share in zip(cases, fits, strict=True)
    ]
    lines.append(Line("bound for smooth φ", list(fits[0]), [cases[0].outside] * len(fits[0]), "dashed"))
    return Panel("The update stays near 2K directions …", "step t", "share of the energy outside", lines, "y")


def _regime_panel(beyond: dict[Regime, dict[int, float]]) -> Panel:
    lines = [
        Line(f"{_name(case.activation)}, targets × {scale:g}", list(share), list(share.values()))
        for (case, scale), share in beyond.items()
    ]
    return Panel("… in a regime: few samples, far beyond the fit", "step t", "share of the energy outside", lines, "y")


def _note(
    cases: Sequence[Expected], fits: Sequence[dict[int, float]], beyond: dict[Regime, dict[int, float]], s: Size
) -> str:
    shares = ", ".join(
        f"{_name(case.activation)} {max(share.values()):.1%}" for case, share in zip(cases, fits, strict=True)
    )
    regimes = ", ".join(
        f"{_name(case.activation)} {share[s.beyond]:.1%} (targets × {scale:g})"
        for (case, scale), share in beyond.items()
    )
    return (
        "Nothing here is exactly invariant. Up to the fit the share of the update's energy outside the 2K × 2K block "
        f"is at most: {shares}; outside K × K directions hardly more, as W_2 stays. With {s.few} samples a class "
        f"instead of {s.many}, {s.beyond // s.steps} times as long: {regimes}. A layer of rank 2K learns in the block "
        "what the whole layer learns, and not in a random block; where its bases train too, a random one catches up in "
        "a setting as small as this."
    )


def _name(activation: Activation) -> str:
    return getattr(activation, "__name__", repr(activation))


CLAIM = Claim(
    id="T6",
    title="Nonlinear networks, nearly",
    statement=(
        "With a smooth activation and whitened data, gradient descent on the first layer of a two-layer network with K "
        "outputs keeps most of its update's energy in 2K directions, known from the start and the first gradient."
    ),
    source="Xu et al., arXiv 2602.06208; the order of the tail in ε is derived here",
    half="dynamics",
    regime=(
        "Observed, not exact: smooth activations while the network fits, or with small targets. It fails for ReLU, and "
        "for any activation with few samples, large targets and a training far beyond the fit."
    ),
    run=run,
)
