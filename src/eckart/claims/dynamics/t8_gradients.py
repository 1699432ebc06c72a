"""T8: the gradient of a layer loses rank while the layer trains."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from eckart.claims.claim import Check, Claim, Line, Panel, Result
from eckart.claims.dynamics.course import Watch
from eckart.linalg import orthonormalize, singular_values, stable_rank
from eckart.nn import Progress
from eckart.theory import gradient_at, gradient_course, slowest_part, stable_rank_bound


class Size(NamedTuple):
    """Shape of the gradient, how long, and how often to look."""

    shape: tuple[int, int] = (24, 32)
    steps: int = 1000
    every: int = 10


SIZES = {"small": Size(), "paper": Size()}
EARLY = 300  # the figure of the stable rank ends here
NAMED = (0, 20, 100, 400)  # steps whose stable rank is reported
REPEATS = (3, 2)  # how often the smallest eigenvalue of B and of C occurs, where its eigenspace is to be seen
FAST = 1.99  # a rate beyond 1 / (β γ)_max, where the largest eigenvalues shrink slowest


class Course(NamedTuple):
    """Gradients (T, m, n) at the looks, and their stable ranks."""

    times: Tensor
    gradients: Tensor
    ranks: Tensor


def run(
    seed: int,
    size: str,
    *,
    progress: Progress | None = None,
    closed_form: Callable[..., Tensor] = gradient_at,
) -> Result:
    """Train W in the model G = A − B W C, with simple and with repeated smallest eigenvalues, and too fast.

    Args:
        seed: of A and of the eigenvectors of B and C.
        size: a key of `SIZES`.
        progress: called with (done, total, label).
        closed_form: the theory's G_t, (G_0, B, C, rate=, times=) → (T, m, n).
    """
    s = SIZES[size]
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(s.shape, generator=generator, dtype=torch.float64)
    B, C = (_psd(torch.linspace(0.1, 1.0, n), generator) for n in s.shape)
    B2, C2 = (
        _psd(torch.cat((torch.full((k,), 0.1), torch.linspace(0.3, 1.0, n - k))), generator)
        for n, k in zip(s.shape, REPEATS, strict=True)
    )
    watch = Watch(progress, 3 * s.steps)
    courses = {
        "simple": _train(A, B, C, 1.0, s, watch),
        "repeated": _train(A, B2, C2, 1.0, s, watch),
        "fast": _train(A, B2, C2, FAST, s, watch),
    }
    theory = _ranks(closed_form(A, B, C, rate=1.0, times=courses["simple"].times))
    bound = stable_rank_bound(A, B, C, rate=1.0, times=courses["simple"].times)
    slow = slowest_part(A, B2, C2)
    limit = float(stable_rank(singular_values(slow)))
    shares = {label: _share(courses[label].gradients, slow) for label in ("repeated", "fast")}
    checks = _checks(courses, theory, bound, limit, shares)
    return Result(checks, _panels(courses, theory, bound, limit, shares), _note(courses, limit, shares))


def _psd(values: Tensor, generator: torch.Generator) -> Tensor:
    """A symmetric matrix with these eigenvalues and uniformly drawn eigenvectors."""
    Q = orthonormalize(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
    return Q * values.to(Q.dtype) @ Q.mT


def _train(A: Tensor, B: Tensor, C: Tensor, rate: float, s: Size, watch: Watch) -> Course:
    course = gradient_course(A, B, C, torch.zeros_like(A), rate=rate)
    seen = dict(watch(course, steps=s.steps, every=s.every, label=f"rate {rate}"))
    gradients = torch.stack(list(seen.values()))
    return Course(torch.tensor(list(seen)), gradients, _ranks(gradients))


def _ranks(gradients: Tensor) -> Tensor:
    return stable_rank(singular_values(gradients))


def _share(gradients: Tensor, slow: Tensor) -> list[float]:
    """How much of the energy of G_t lies along the start's slowest part."""
    along = (gradients * slow).sum(dim=(-2, -1)).square() / slow.square().sum()
    return (along / gradients.square().sum(dim=(-2, -1))).tolist()


def _checks(
    courses: dict[str, Course], theory: Tensor, bound: Tensor, limit: float, shares: dict[str, list[float]]
) -> list[Check]:
    times, measured = courses["simple"].times.tolist(), courses["simple"].ranks
    named = [times.index(t) for t in NAMED]
    return [
        *(
            Check(f"stable rank of the gradient at t = {times[k]}", float(theory[k]), float(measured[k]), 1e-8)
            for k in named
        ),
        Check("most that the stable rank exceeds the lemma's bound", 0.0, float((measured - bound).max()), 1e-8, "≤"),
        Check(
            "its limit, smallest eigenvalues repeated 3 and 2 times", limit, float(courses["repeated"].ranks[-1]), 1e-6
        ),
        Check("energy in the slowest part at the end", 1.0, shares["repeated"][-1], 1e-6),
        Check(f"stops: the same at η = {FAST} / (β γ)_max", 0.5, shares["fast"][-1], relation="≤"),
    ]


def _panels(
    courses: dict[str, Course], theory: Tensor, bound: Tensor, limit: float, shares: dict[str, list[float]]
) -> list[Panel]:
    times = courses["simple"].times.tolist()
    early = sum(t <= EARLY for t in times)
    simple, repeated = (courses[label].ranks.tolist() for label in ("simple", "repeated"))
    rank = "stable rank ‖G‖_F² / ‖G‖_2²"
    return [
        Panel(
            "The gradient loses rank",
            "step t",
            rank,
            [
                Line("simple eigenvalues", times[:early], simple[:early], "points"),
                Line("repeated smallest eigenvalues", times[:early], repeated[:early], "points"),
                Line("closed form, simple", times[:early], theory[:early].tolist(), "dashed"),
                Line("limit, repeated", [times[0], times[early - 1]], [limit, limit], "dashed"),
            ],
        ),
        Panel(
            "The lemma's bound is far above at first",
            "step t",
            rank,
            [Line("simple eigenvalues", times, simple), Line("bound", times, bound.tolist(), "dashed")],
            "y",
        ),
        Panel(
            "Where it stops",
            "step t",
            "energy in the slowest part, share",
            [
                Line("η = 1 / (β γ)_max", times, shares["repeated"]),
                Line(f"η = {FAST} / (β γ)_max", times, shares["fast"]),
            ],
        ),
    ]


def _note(courses: dict[str, Course], limit: float, shares: dict[str, list[float]]) -> str:
    times = courses["simple"].times.tolist()
    course = ", ".join(f"{float(courses['simple'].ranks[times.index(t)]):.3f} (t = {t})" for t in NAMED)
    return (
        f"Stable rank {course}. What is left in the end is the part of the gradient where B and C have their smallest "
        f"eigenvalues. Repeated {REPEATS[0]} and {REPEATS[1]} times, it has stable rank {limit:.3f}: at most the "
        f"smaller of the two, and less where one singular value leads. Beyond η = 1 / (β γ)_max that part is not what "
        f"remains: {shares['fast'][-1]:.0e} of the energy at the end."
    )


CLAIM = Claim(
    id="T8",
    title="The gradient's rank decays",
    statement=(
        "Along gradient descent with G_t = A − B W_t C the stable rank of the gradient tends to that of its part where "
        "B and C have their smallest eigenvalues, which is 1 when they are simple."
    ),
    source="Zhao et al., arXiv 2403.03507 (the lemma); the closed form is our derivation",
    half="dynamics",
    regime="Learning rates up to 1 / (β γ)_max; beyond, the part with the largest eigenvalues can remain.",
    run=run,
)
