"""T4: compressed deep matrix completion recovers a matrix seen in part, if its outer factors learn too, slowly."""

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from eckart.claims.claim import Check, Claim, Line, Panel, Result
from eckart.claims.dynamics.race import Racer, race
from eckart.linalg import orthonormalize
from eckart.nn import Progress
from eckart.theory import completion, compress, compressed_rates, first_gradient, orthogonal_weights

LARGE, SMALL, FIXED = "full", "compressed", "compressed, γ = 0"


class Size(NamedTuple):
    """Dimension d, rank r, share p of the entries seen, ‖Φ‖_F/d, L, ε, η, how long at most, and where to stop.

    `recovered` is the relative error ‖P − Φ‖/‖Φ‖ that counts as recovery, `faster` how many times less processor
    time the compressed network must take to it.
    """

    dimension: int
    rank: int
    seen: float
    scale: float
    eps: float
    rate: float
    steps: int
    every: int
    recovered: float
    faster: float
    dtype: torch.dtype
    depth: int = 3


# The paper divides the loss by d², so its η = 5000 at d = 1000 is 0.005 here. Its loss ½‖P − Φ‖²/d² of 1e-10 is a
# relative error of 1e-4 at this scale, well within float32. The small size leaves its ten times larger ε sooner.
SIZES = {
    "small": Size(200, 5, 0.3, 0.22, 1e-2, 0.025, 4000, 20, 1e-4, 2.0, torch.float64),
    "paper": Size(1000, 5, 0.2, 0.14, 1e-3, 0.005, 40_000, 200, 1e-4, 7.0, torch.float32),
}


def run(
    seed: int,
    size: str,
    *,
    progress: Progress | None = None,
    folder: Path | None = None,
    outer: float = 0.01,
) -> Result:
    """Train the large network, the compressed one, and the compressed one with fixed outer factors, side by side.

    Args:
        seed: of target, mask and weights.
        size: a key of `SIZES`.
        progress: called with (done, total, label), in steps.
        folder: where the state is kept about every minute; a run that finds one there goes on from it.
        outer: γ, the share of the learning rate that the outer factors get.
    """
    s = SIZES[size]
    target, mask, start = _problem(seed, s)
    signal = first_gradient(start, completion(target, mask))
    small = compress(start, signal, rank=s.rank, eps=s.eps)
    racers = [
        Racer(LARGE, start, [s.rate] * s.depth),
        Racer(SMALL, small, compressed_rates(s.depth, s.rate, outer)),
        Racer(FIXED, small, compressed_rates(s.depth, s.rate)),
    ]
    race(
        [racer.to(s.dtype) for racer in racers],
        completion(target.to(s.dtype), mask),
        target,
        goal=s.recovered,
        pace=(s.steps, s.every),
        progress=progress,
        place=None if folder is None else (folder / "state.safetensors", f"seed {seed}, {s}, γ = {outer}"),
    )
    return Result(_checks(s, racers, _out_of_reach(small, target)), _panels(s, racers), _note(s, racers, outer))


def _problem(seed: int, s: Size) -> tuple[Tensor, Tensor, list[Tensor]]:
    """A Gaussian product of rank r, a mask of independent entries, and ε-orthogonal weights."""
    generator = torch.Generator().manual_seed(seed)
    d = s.dimension
    left, right = (torch.randn(d, s.rank, generator=generator, dtype=torch.float64) for _ in range(2))
    target = left @ right.mT
    target *= s.scale * d / torch.linalg.norm(target)
    mask = torch.rand(d, d, generator=generator, dtype=torch.float64) < s.seen
    return target, mask, orthogonal_weights([d] * (s.depth + 1), s.eps, generator=generator)


def _out_of_reach(small: list[Tensor], target: Tensor) -> float:
    """The share of Φ outside the span of fixed outer factors: no training of the inner ones gets below it."""
    left, right = orthonormalize(small[-1]), orthonormalize(small[0].mT)
    within = torch.linalg.norm(left.mT @ target @ right) / torch.linalg.norm(target)
    return math.sqrt(1 - float(within) ** 2)


def _checks(s: Size, racers: list[Racer], out_of_reach: float) -> list[Check]:
    large, small, fixed = racers
    faster = large.seconds / max(small.seconds, 1e-9)
    each = (large.seconds / large.step) / max(small.seconds / small.step, 1e-9)
    return [
        Check("relative error of the compressed network at the end", s.recovered, small.errors[-1], relation="≤"),
        Check("relative error of the full network at the end", s.recovered, large.errors[-1], relation="≤"),
        Check("γ = 0: relative error at the end, against what its span can't reach", out_of_reach, fixed.errors[-1],
              0.1, relative=True),
        Check("γ = 0: never below what its span can't reach", out_of_reach, min(fixed.errors), 1e-4, "≥"),
        Check("processor time to recovery, full ÷ compressed", s.faster, faster, relation="≥"),
        Check("processor time of a step, full ÷ compressed", s.faster, each, relation="≥"),
    ]  # fmt: skip


def _panels(s: Size, racers: list[Racer]) -> list[Panel]:
    losses = {racer.label: [_loss(s, error) for error in racer.errors] for racer in racers}
    y = "½‖P − Φ‖²_F / d²"
    by_step = [Line(r.label, *_thin(r.steps, losses[r.label])) for r in racers]
    by_time = [Line(r.label, *_thin(r.clock, losses[r.label])) for r in racers]
    return [
        Panel("Without the slow outer factors it stalls", "step t", y, by_step, "y"),
        Panel("The same recovery in a fraction of the time", "processor time (s)", y, by_time, "y"),
    ]


def _thin(x: list[float], y: list[float], points: int = 180) -> tuple[list[float], list[float]]:
    """At most `points` and one of them, the last one always."""
    every = max(1, len(x) // points)
    keep = sorted({*range(0, len(x), every), len(x) - 1})
    return [x[i] for i in keep], [y[i] for i in keep]


def _loss(s: Size, error: float) -> float:
    """½‖P − Φ‖²_F/d², the paper's unit, of a relative error."""
    return (error * s.scale) ** 2 / 2


def _note(s: Size, racers: list[Racer], outer: float) -> str:
    large, small, fixed = racers
    return (
        f"With γ = {outer:g} the compressed network reaches a relative error of {small.errors[-1]:.1e}, a loss "
        f"½‖P − Φ‖²_F/d² of {_loss(s, small.errors[-1]):.0e}, after {small.step:,} steps and {small.seconds:.1f} s of "
        f"a core; the full one {large.errors[-1]:.1e} after {large.step:,} steps and {large.seconds:.1f} s. With γ = 0 "
        f"the outer factors keep the span that the first gradient of {s.seen:.0%} of the entries gave, and the error "
        f"stays at {fixed.errors[-1]:.2f}, a loss of {_loss(s, fixed.errors[-1]):.0e}."
    )


CLAIM = Claim(
    id="T4",
    title="Compressed deep matrix completion",
    statement=(
        "A matrix of low rank seen in part is recovered by the compressed deep factorisation as by the full one, in a "
        "fraction of the time, once its outer factors train at γ = 0.01 of the inner rate; with γ = 0 it stalls at the "
        "part of the matrix outside its first span."
    ),
    source="Yaras et al., arXiv 2406.04112, deep matrix completion",
    half="dynamics",
    regime="Enough entries for the rank: here 6 and 20 times as many as the matrix has degrees of freedom, 2dr − r².",
    run=run,
    resumable=True,
)
