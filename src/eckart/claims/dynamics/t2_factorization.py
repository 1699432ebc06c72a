"""T2: in deep matrix factorisation 2r directions of every layer move, and the bulk follows a scalar recursion."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from eckart.claims.claim import Check, Claim, Line, Panel, Result
from eckart.claims.dynamics.course import Watch
from eckart.linalg import factorization_signal, principal_angles, truncated_svd
from eckart.nn import Progress
from eckart.theory import (
    block_form,
    descend,
    factorization,
    factorization_bulk,
    low_rank_target,
    moving_bases,
    orthogonal_weights,
)


class Case(NamedTuple):
    """The scales ε_1, …, ε_L of the layers, and the weight decay λ."""

    scales: tuple[float, ...]
    decay: float

    @property
    def label(self) -> str:
        """In words."""
        scales = sorted(set(self.scales))
        return f"L = {len(self.scales)}, ε = {', '.join(map(str, scales))}, λ = {self.decay}"


class Size(NamedTuple):
    """Dimension d, singular values of the target, η, and how long."""

    dimension: int = 30
    values: tuple[float, ...] = (4.0, 3.0, 2.0)
    rate: float = 0.005
    steps: int = 1000


SIZES = {"small": Size(), "paper": Size()}
CASES = (
    Case((1.0,) * 3, 0.0),
    Case((0.5,) * 3, 1e-3),
    Case((0.3,) * 4, 0.0),
    Case((0.3, 0.6, 0.9), 1e-3),
)
LOOKS = 100


class Course(NamedTuple):
    """What was seen of one training: at each look the worst of all layers, and the first layer's singular triples."""

    times: list[int]
    leak: list[float]
    bulk_error: list[float]
    triples: list[tuple[Tensor, Tensor, Tensor]]  # U, S, Vᵀ


def run(
    seed: int,
    size: str,
    *,
    progress: Progress | None = None,
    bulk: Callable[..., Tensor] = factorization_bulk,
) -> Result:
    """Factorise a target of rank r from several starts, and compare each layer's bulk with the recursion.

    Args:
        seed: of target and weights.
        size: a key of `SIZES`.
        progress: called with (done, total, label).
        bulk: the theory's ρ_l(t), (scales, steps, rate=, decay=) → (steps + 1, L).
    """
    s = SIZES[size]
    generator = torch.Generator().manual_seed(seed)
    target = low_rank_target((s.dimension, s.dimension), s.values, generator=generator)
    watch = Watch(progress, (len(CASES) + 1) * s.steps)
    rank = len(s.values)

    def train(case: Case, rank: int) -> Course:
        widths = [s.dimension] * (len(case.scales) + 1)
        units = orthogonal_weights(widths, 1.0, generator=generator)
        start = [eps * W for eps, W in zip(case.scales, units, strict=True)]
        rho = bulk(case.scales, s.steps, rate=s.rate, decay=case.decay)
        return _train(start, target, s, case, rank, rho, watch)

    courses = [train(case, rank) for case in CASES]
    narrow = train(CASES[0], rank - 1)
    turns = [_turns(courses[0], rank, side) for side in (0, 1)]
    checks = [check for case, course in zip(CASES, courses, strict=True) for check in _checks(case, course)]
    still = max(max(turn["middle d − 2r"]) for turn in turns)
    checks += [
        Check("turn of the middle d − 2r singular directions, degrees", 0.0, still, 1e-6, "≤"),
        Check("stops: largest entry off blocks made for r − 1", 1e-2, max(narrow.leak), relation="≥"),
    ]
    rho = bulk(CASES[0].scales, s.steps, rate=s.rate, decay=CASES[0].decay)[:, 0]
    panels = [
        _spectrum(courses[0], rank, rho),
        *(_angles(courses[0], *each) for each in zip(("left", "right"), turns, strict=True)),
    ]
    return Result(checks, panels, _note(s, courses, narrow, rho))


def _train(start: list[Tensor], target: Tensor, s: Size, case: Case, rank: int, rho: Tensor, watch: Watch) -> Course:
    """Gradient descent from `start`, each layer looked at in the bases made for `rank`."""
    bases = moving_bases(start, factorization_signal(start, target), rank)
    course = Course([], [], [], [])
    run = descend(start, factorization(target), rate=s.rate, decay=case.decay)
    for t, (weights, _) in watch(run, steps=s.steps, every=s.steps // LOOKS, label=case.label):
        blocks = [block_form(W, U, V, 2 * rank) for W, (U, V) in zip(weights, bases, strict=True)]
        errors = [block.spread + (block.bulk - value).abs() for block, value in zip(blocks, rho[t], strict=True)]
        course.times.append(t)
        course.leak.append(max(float(block.leak) for block in blocks))
        course.bulk_error.append(max(float(error) for error in errors))
        course.triples.append(truncated_svd(weights[0], s.dimension, method="exact"))
    return course


def _checks(case: Case, course: Course) -> list[Check]:
    return [
        Check(f"largest entry off the blocks, {case.label}", 0.0, max(course.leak), 1e-12, "≤"),
        Check(f"largest error of the bulk ρ_l(t) I, {case.label}", 0.0, max(course.bulk_error), 1e-12, "≤"),
    ]


def _turns(course: Course, rank: int, side: int) -> dict[str, list[float]]:
    """Largest angle of three groups of singular directions to where they were at the first look after the start."""
    bases = [(U, Vh.mT)[side] for U, _, Vh in course.triples[1:]]
    groups = {"top r": slice(0, rank), "middle d − 2r": slice(rank, -rank), "bottom r": slice(-rank, None)}
    return {
        label: [math.degrees(float(principal_angles(bases[0][:, group], Q[:, group]).max())) for Q in bases]
        for label, group in groups.items()
    }


def _spectrum(course: Course, rank: int, rho: Tensor) -> Panel:
    values = torch.stack([S for _, S, _ in course.triples])
    moving = [k for k in range(values.shape[1]) if k < rank or k >= values.shape[1] - rank]
    lines = [Line(f"σ_{k + 1}", course.times, values[:, k].tolist()) for k in moving]
    middle = Line(f"σ_{rank + 1}, …, σ_{values.shape[1] - rank}", course.times, values[:, rank].tolist(), "points")
    theory = Line("ρ(t) of the recursion", course.times, rho[course.times].tolist(), "dashed")
    return Panel("Singular values of the first layer", "step t", "singular value", [*lines, middle, theory])


def _angles(course: Course, side: str, turns: dict[str, list[float]]) -> Panel:
    # Top and bottom fill the moving block together, so they turn by the same angles: one is drawn as points.
    styles: dict[str, Literal["line", "points"]] = {"bottom r": "points"}
    lines = [Line(label, course.times[1:], turn, styles.get(label, "line")) for label, turn in turns.items()]
    title = f"How far its {side} singular directions turn"
    return Panel(title, "step t", f"largest angle to step {course.times[1]}, degrees", lines)


def _note(s: Size, courses: list[Course], narrow: Course, rho: Tensor) -> str:
    error = max(max(course.bulk_error) for course in courses)
    return (
        f"From ε = 1 the middle {s.dimension - 2 * len(s.values)} singular values shrink from 1 to {rho[-1]:.3f} "
        f"together, as one scalar recursion says (to {error:.0e}, also for layers of different scales), and their "
        f"directions stay. Blocks made for a rank one too small leak {max(narrow.leak):.2f}: r must be at least the "
        "target's rank."
    )


CLAIM = Claim(
    id="T2",
    title="Deep matrix factorisation",
    statement=(
        "Gradient descent on a deep factorisation of a rank-r target moves the same 2r directions of every layer; the "
        "rest is ρ_l(t) I with ρ_l(t+1) = ρ_l(t) (1 − ηλ − η Π_{k≠l} ρ_k(t)²)."
    ),
    source="Yaras et al., arXiv 2406.04112; layers of different scales by the same proof",
    half="dynamics",
    regime="Square layers, orthogonal at the start, r at least the rank of the target; blocks for a smaller r leak.",
    run=run,
)
