"""T3: a small network follows the large one all along, up to √m Π ρ_l."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from eckart.claims.claim import Check, Claim, Line, Panel, Result
from eckart.claims.dynamics.course import Watch
from eckart.claims.threads import one_thread
from eckart.linalg import factorization_signal
from eckart.nn import Progress
from eckart.theory import (
    compress,
    compressed_rates,
    descend,
    factorization,
    factorization_bulk,
    low_rank_target,
    orthogonal_weights,
    parameter_counts,
    product,
    trajectory_error,
)


class Size(NamedTuple):
    """Dimension d, rank of the target and its largest and smallest singular value, L, ε, η, and how long."""

    dimension: int
    rank: int
    values: tuple[float, float]
    eps: float
    rate: float
    steps: int
    every: int
    depth: int = 3


# A step is stable for η σ_1^(2 − 2/L) < 2/L. At the paper's d and ε the target has small singular values, so that it is
# learned in 1800 steps; with σ_1 = 1 it takes 5000.
SIZES = {
    "small": Size(100, 5, (1.0, 0.7), eps=1e-2, rate=0.4, steps=800, every=8),
    "paper": Size(1000, 10, (0.05, 0.035), eps=1e-3, rate=25.0, steps=1800, every=18),
}


class Course(NamedTuple):
    """The errors of the small networks against the large one, by their r̂, and the losses, at each look."""

    times: list[int]
    errors: dict[int, list[float]]
    losses: dict[str, list[float]]


def run(
    seed: int,
    size: str,
    *,
    progress: Progress | None = None,
    bulk: Callable[..., Tensor] = factorization_bulk,
) -> Result:
    """Train the large network and small ones of r̂ = r, 2r and r − 1 side by side on one target.

    Args:
        seed: of target and weights.
        size: a key of `SIZES`.
        progress: called with (done, total, label).
        bulk: the theory's ρ_l(t), (scales, steps, rate=) → (steps + 1, L).
    """
    s = SIZES[size]
    generator = torch.Generator().manual_seed(seed)
    values = torch.linspace(*s.values, s.rank).tolist()
    target = low_rank_target((s.dimension, s.dimension), values, generator=generator)
    start = orthogonal_weights([s.dimension] * (s.depth + 1), s.eps, generator=generator)
    with one_thread(when=s.dimension < 500):
        course = _train(start, target, s, (s.rank, 2 * s.rank, s.rank - 1), Watch(progress, s.steps))

    rho = bulk([s.eps] * s.depth, s.steps, rate=s.rate)[course.times]
    theory = {rank: trajectory_error(rho, size=s.dimension, rank=rank).tolist() for rank in (s.rank, 2 * s.rank)}
    checks = []
    for rank, predicted in theory.items():
        errors = course.errors[rank]
        worst = max(abs(error / each - 1) for error, each in zip(errors, predicted, strict=True))
        checks += [
            Check(f"largest error along training, r̂ = {rank}", max(predicted), max(errors), 1e-8, relative=True),
            Check(f"its largest relative deviation from √m Π ρ_l(t), r̂ = {rank}", 0.0, worst, 1e-8, "≤"),
        ]
    large, missed = course.losses["large"], course.errors[s.rank - 1][-1]
    checks += [
        Check("loss at the end, share of the first", 0.0, large[-1] / large[0], 1e-3, "≤"),
        Check(f"stops: error at the end, r̂ = {s.rank - 1}", values[-1] / 2, missed, relation="≥"),
    ]
    return Result(checks, _panels(course, theory), _note(s, course))


def _train(start: list[Tensor], target: Tensor, s: Size, ranks: tuple[int, ...], watch: Watch) -> Course:
    slope = factorization(target)
    signal = factorization_signal(start, target)
    rates = compressed_rates(s.depth, s.rate)
    small = [descend(compress(start, signal, rank=rank, eps=s.eps), slope, rate=rates) for rank in ranks]
    course = Course([], {rank: [] for rank in ranks}, {"large": [], f"small, r̂ = {s.rank}": []})
    together = zip(descend(start, slope, rate=s.rate), *small, strict=True)
    for t, ((weights, loss), *others) in watch(together, steps=s.steps, every=s.every, label=f"d = {s.dimension}"):
        course.times.append(t)
        for each, value in zip(course.losses.values(), (loss, others[0][1]), strict=True):
            each.append(float(value))
        P = product(weights)
        for rank, (inner, _) in zip(ranks, others, strict=True):
            course.errors[rank].append(float(torch.linalg.norm(P - product(inner))))
    return course


def _panels(course: Course, theory: dict[int, list[float]]) -> list[Panel]:
    lines = []
    for rank, errors in course.errors.items():
        lines.append(Line(f"r̂ = {rank}", course.times, errors))
        if rank in theory:
            lines.append(Line(f"theory, r̂ = {rank}", course.times, theory[rank], "dashed"))
    styles: tuple[Literal["line", "points"], ...] = ("line", "points")  # the same at first: both are seen
    losses = [
        Line(label, course.times, y, style) for style, (label, y) in zip(styles, course.losses.items(), strict=True)
    ]
    title = "How far the small network is from the large one"
    return [
        Panel(title, "step t", "‖P(t) − P̃(t)‖_F, in theory √m Π ρ_l(t)", lines, "y"),
        Panel("They learn together", "step t", "loss ½‖P − Φ‖²_F", losses, "y"),
    ]


def _note(s: Size, course: Course) -> str:
    large, small = parameter_counts(s.dimension, s.depth, s.rank)
    return (
        f"{small:,} parameters, of which {s.depth * (2 * s.rank) ** 2:,} train, go the way of {large:,} to "
        f"{max(course.errors[s.rank]):.1e} at every step. Any r̂ ≥ r does; with r̂ = r − 1 the smallest singular value "
        f"of the target is missed, and the error ends at {course.errors[s.rank - 1][-1]:.2g}."
    )


CLAIM = Claim(
    id="T3",
    title="Compression by the invariant subspace",
    statement=(
        "The deep factorisation restricted to its 2r̂ moving directions gives the same product at every step of "
        "training, up to an error of √(d − 2r̂) Π ρ_l."
    ),
    source="Yaras et al., arXiv 2406.04112",
    half="dynamics",
    regime="Needs r̂ ≥ r and a target that is wholly seen; with r̂ < r a singular value of it is never learned.",
    run=run,
    parallel=True,
)
