"""T1: training a deep linear classifier moves 2K directions of each layer; the rest only decays."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from eckart.claims.claim import Check, Claim, Line, Panel, Result
from eckart.claims.dynamics.course import Watch
from eckart.linalg import numerical_rank, singular_values
from eckart.nn import Progress
from eckart.theory import (
    balanced_classes,
    block_form,
    classification_bulk,
    descend,
    first_gradient,
    moving_bases,
    orthogonal_weights,
    regression,
    whiten,
)
from eckart.theory.descent import Slope


class Size(NamedTuple):
    """A problem: input dimension d, K classes of so many samples, L layers; ε, η, and how long."""

    dimension: int = 30
    classes: int = 3
    samples: int = 40
    depth: int = 3
    eps: float = 1.0
    rate: float = 0.05
    steps: int = 2000


SIZES = {"small": Size(), "paper": Size()}
DECAYS = (0.0, 0.01)  # λ
FIRST, EVERY = 50, 40  # each of the first steps, when all happens, then fewer


class Course(NamedTuple):
    """What was seen of one training: the steps, and of all layers but the last the worst at each of them."""

    times: list[int]
    leak: list[float]
    bulk_error: list[float]
    spectra: list[Tensor]  # singular values of the last such layer's W(t) − (1−ηλ)^t W(0)

    def tail(self, rank: int) -> list[float]:
        """σ_{rank+1} / σ_1 of the update, from the first look after the start."""
        return [float(S[rank] / S[0]) for S in self.spectra[1:]]


def run(
    seed: int,
    size: str,
    *,
    progress: Progress | None = None,
    bulk: Callable[..., Tensor] = classification_bulk,
) -> Result:
    """Train on whitened data with and without decay, and see that nothing but 2K directions moves.

    Args:
        seed: of data and weights.
        size: a key of `SIZES`.
        progress: called with (done, total, label).
        bulk: the theory's ρ(t), (ε, steps, rate=, decay=) → (steps + 1,).
    """
    s = SIZES[size]
    generator = torch.Generator().manual_seed(seed)
    inputs, targets, _ = balanced_classes(s.dimension, s.classes, s.samples, generator=generator)
    scales = torch.linspace(0.3, 1.0, s.dimension, dtype=torch.float64) / inputs.shape[1] ** 0.5
    white, raw = regression(whiten(inputs), targets), regression(scales[:, None] * inputs, targets)
    start = orthogonal_weights([s.dimension] * s.depth + [s.classes], s.eps, generator=generator)
    gaussian = [torch.randn(W.shape, generator=generator, dtype=W.dtype) * s.dimension**-0.5 for W in start]

    watch = Watch(progress, (len(DECAYS) + 2) * s.steps)
    exact = {
        decay: _train(start, white, s, decay, bulk, watch, f"whitened data, orthogonal start, λ = {decay}")
        for decay in DECAYS
    }
    outside = {
        "data not whitened": _train(start, raw, s, 0.0, bulk, watch, "data not whitened"),
        "Gaussian start": _train(gaussian, white, s, 0.0, bulk, watch, "Gaussian start"),
    }
    rank = 2 * s.classes
    checks = [check for decay, course in exact.items() for check in _checks(decay, course, rank)]
    checks += [
        Check(f"stops: σ_{rank + 1}/σ_1 of the update, {label}", 1e-3, max(course.tail(rank)), relation="≥")
        for label, course in outside.items()
    ]
    return Result(checks, _panels(exact[0.0], outside, rank), _note(s, exact, outside))


def _train(
    start: list[Tensor], slope: Slope, s: Size, decay: float, bulk: Callable[..., Tensor], watch: Watch, label: str
) -> Course:
    """Gradient descent from `start`, each layer looked at in the bases that the first gradient gives."""
    inner = start[:-1]
    bases = moving_bases(inner, first_gradient(start, slope), s.classes)
    rho = bulk(s.eps, s.steps, rate=s.rate, decay=decay)
    course = Course([], [], [], [])
    run = descend(start, slope, rate=s.rate, decay=decay)
    for t, (weights, _) in watch(run, steps=s.steps, every=EVERY, first=FIRST, label=label):
        blocks = [block_form(W, U, V, 2 * s.classes) for W, (U, V) in zip(weights[:-1], bases, strict=True)]
        course.times.append(t)
        course.leak.append(max(float(block.leak) for block in blocks))
        course.bulk_error.append(max(float(block.spread + (block.bulk - rho[t]).abs()) for block in blocks))
        course.spectra.append(singular_values(weights[-2] - (1 - s.rate * decay) ** t * start[-2]))
    return course


def _checks(decay: float, course: Course, rank: int) -> list[Check]:
    final = course.spectra[-1]
    # One rounding of each weight at each step: far below the smallest direction that moves, about 1e-3.
    moved = int(numerical_rank(final, (len(final), len(final)), eps=1e-12))
    return [
        Check(f"largest entry off the blocks, λ = {decay}", 0.0, max(course.leak), 1e-13, "≤"),
        Check(f"largest error of the bulk ρ(t) I, λ = {decay}", 0.0, max(course.bulk_error), 1e-13, "≤"),
        Check(f"rank of W(t) − (1−ηλ)^t W(0), λ = {decay}", rank, moved),
    ]


def _panels(course: Course, outside: dict[str, Course], rank: int) -> list[Panel]:
    x = course.times[1:]
    values = torch.stack(course.spectra[1:])
    moving = [Line(f"σ_{k + 1}", x, values[:, k].tolist()) for k in range(rank)]
    still = Line(f"σ_{rank + 1}", x, values[:, rank].tolist(), "points")
    tails = [Line(label, other.times[1:], other.tail(rank)) for label, other in outside.items()]
    return [
        Panel("What one layer's update is made of", "step t", "singular value of W(t) − W(0)", [*moving, still], "xy"),
        Panel(
            "Where it stops",
            "step t",
            f"σ_{rank + 1} / σ_1 of the update",
            [Line("whitened data, orthogonal start", x, course.tail(rank)), *tails],
            "xy",
        ),
    ]


def _note(s: Size, exact: dict[float, Course], outside: dict[str, Course]) -> str:
    worst = max(max(course.leak) for course in exact.values())
    tails = ", ".join(f"{max(course.tail(2 * s.classes)):.1e} ({label})" for label, course in outside.items())
    return (
        f"Of {s.dimension} directions of each layer {2 * s.classes} move; the others stay ρ(t) I to {worst:.0e}, for "
        f"all {s.steps} steps. It needs whitened data and an orthogonal start: without, the next singular value of the "
        f"update reaches a visible share of the largest, {tails}."
    )


CLAIM = Claim(
    id="T1",
    title="Law of parsimony",
    statement=(
        "Gradient descent on a deep linear classifier with K classes moves the same 2K directions of every layer but "
        "the last, at every step; the rest is ε(1 − ηλ)^t times the identity."
    ),
    source="Yaras et al., arXiv 2306.01154",
    half="dynamics",
    regime="Whitened data and orthogonal weights at the start; with other data or a Gaussian start the bulk moves.",
    run=run,
)
