"""Deep matrix completion for a matrix of your own: the compressed deep factorisation, started from the data's spectrum.

    minimise ½p⁻¹‖mask∘(W_L … W_1 − X)‖² + ½λ Σ‖W_l‖²,     W_1 (w×n), W_2 … W_{L−1} (w×w), W_L (m×w),     w = 2·rank,

X the matrix with its columns standardised (`observed`), divided by the largest singular value of its surrogate
p⁻¹ mask∘X. W_1 and W_L start at that surrogate's leading singular vectors, the inner factors at εI, so that directions
are learned one after the other, strong ones first. L, λ and the number of steps are chosen on held-out entries, then
all observed entries are fitted with that choice. L = 3 needs fewer entries and keeps more noise out, but may leave
directions a tenth as strong as the strongest at zero; L = 2 finds them. On this scale one learning rate, 1.2/L, suits
every matrix; it is halved where it diverges.

Cost: 6 m n w flops a step; up to some hundred steps for each L and λ.
Paper: 2406.04112 (T4) takes width 2r̂ and the first gradient's subspace, γ = 0.01 for the outer factors and no decay. We
start from the surrogate's SVD (2311.05061, T5), which needs no large network, and train all factors at one rate with
decay: on L factors that is a Schatten-2/L penalty (C2), which real data with noise needs; the data choose it, and on
data without noise they choose 0. `depth=5, discrepant=0.01, decay=0.0` is closest to the paper.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from eckart.nn import Progress
from eckart.theory.choosing import RELEASE, fit_trial, release, replay, search
from eckart.theory.fitting import Fit
from eckart.theory.observed import hold_out, prepare

RANGES = {
    "depth": "one number of factors or some, at least 2",
    "eps": "above 0",
    "discrepant": "above 0; 0 would keep the outer factors where they are, and completion stalls",
    "steps": "at least 1",
    "tolerance": "0 or more",
    "held_out": "a share between 0 and 1, of the observed entries",
    "decay": "one number or some, 0 or more",
}
DECAYS = (0.2, 0.15, 0.12, 0.1, 0.08, 0.06, 0.04, 0.02, 0.01)
LATER = 1.05  # a depth named later must lower the held-out error by this factor: a close call is chance


@dataclass(frozen=True)
class Completion:
    """A completed matrix, and how it was found.

    Args:
        matrix: the estimate (m, n), at observed entries too; torch.where(mask, observed, matrix) keeps what is known.
        left, right: (m, w) and (w, n) with matrix = mean + scale · (left @ right), w = 2·rank.
        mean, scale: of each column.
        depth, phases: L and the (λ, steps) that were chosen: the search's, then those of the release.
        error: held-out error of that choice, root mean square in units of each column's scale; 1 is as good as the
            column's mean.
        errors: the same at every tenth step of the first phase, until its fit stopped.
        losses: the loss of the last fit, to all that was observed, at every tenth step.
        trials: λ → lowest held-out error of the search, at this depth.
        stopped: why the first phase's fit stopped.
    """

    matrix: Tensor
    left: Tensor
    right: Tensor
    mean: Tensor
    scale: Tensor
    depth: int
    phases: list[tuple[float, int]]
    error: float
    errors: list[float]
    losses: list[float]
    trials: dict[float, float]
    stopped: str


def complete_matrix(
    observed: Tensor,  # (m, n)
    mask: Tensor,  # (m, n)
    rank: int,
    *,
    depth: int | Sequence[int] = (3, 2),  # L
    eps: float = 0.01,
    discrepant: float = 1.0,  # γ
    decay: float | Sequence[float] = DECAYS,  # λ
    held_out: float = 0.1,
    steps: int = 2000,
    tolerance: float = 1e-3,
    progress: Progress | None = None,
    generator: torch.Generator | None = None,
) -> Completion:
    """Complete a matrix of which some entries were observed, by a compressed deep factorisation.

    Args:
        observed: any real dtype and scale, columns in units of their own; computed in float32, or float64 for float64.
            What it holds where it was not observed does not matter, NaN included.
        mask: True or 1 where it was observed.
        rank: a guess of its rank from above; the factors get width 2·rank ≤ min(m, n). Too large costs time, hardly
            accuracy.
        depth: numbers of factors L ≥ 2 to choose from, the preferred one first. Or one number.
        eps: start of the inner factors, > 0, where the strongest direction ends at about 1.
        discrepant: the outer factors' learning rate, as a share γ > 0 of the inner ones'.
        decay: weight decays λ ≥ 0 to choose from, from large to small, in units of the strongest direction; the search
            ends when two have made it worse. Or one number. The one that was chosen is then released as far as helps.
        held_out: share of the observed entries to choose steps and decay on, between 0 and 1.
        steps: of a fit, at most.
        tolerance: a held-out error counts as lower if it is so by this share.
        progress: called with (done, total, label), in steps.
        generator: of the held-out entries, on observed's device; None takes a fixed seed.

    Returns:
        A `Completion`.

    Warns:
        UserWarning: on held-out entries the columns' means would do as well.

    Raises:
        TypeError: observed or mask is no real tensor.
        ValueError: empty rows or columns, entries observed and not finite, shapes that differ, a rank above
            min(m, n)/2, or a share, rate or count out of its range.

    Example:
        >>> rows, columns = torch.arange(30.0)[:, None], torch.arange(20.0)
        >>> Phi = 100 * torch.sin(rows / 5) * torch.cos(columns / 4) + columns  # rank 1 and a mean for each column
        >>> mask = torch.rand(30, 20, generator=torch.Generator().manual_seed(0)) < 0.5
        >>> found = complete_matrix(Phi, mask, rank=2)
        >>> found.phases[-1][0], bool((found.matrix - Phi)[~mask].abs().max() < 0.1)
        (0.0, True)
    """
    depths = [depth] if isinstance(depth, int) else list(depth)
    decays = [float(decay)] if isinstance(decay, int | float) else list(decay)
    _require(depth=min(depths, default=0) >= 2, decay=min(decays, default=-1) >= 0, eps=eps > 0, steps=steps >= 1,
             discrepant=discrepant > 0, tolerance=tolerance >= 0, held_out=0 < held_out < 1)  # fmt: skip
    matrix, mask = prepare(observed, mask)
    limit = min(matrix.shape) // 2
    if not 1 <= rank <= limit:
        raise ValueError(f"rank must be from 1 to min(m, n)/2 = {limit} for observed {tuple(matrix.shape)}, got {rank}")
    phases = len(depths) * (len(decays) + len(RELEASE)) + 1

    def report(phase: int, step: int, label: str) -> None:
        if progress is not None:
            progress(phase * steps + step, phases * steps, label)

    held = hold_out(mask, held_out, generator)
    trial = partial(fit_trial, matrix=matrix, held=held, steps=steps, tolerance=tolerance, report=report)
    courses = []
    for index, each in enumerate(depths):
        start = Fit.start(matrix, mask & ~held, 2 * rank, each, eps, discrepant)
        phase = index * (phases - 1) // len(depths)
        trials = search(trial, start, decays, phase)
        first = min(trials, key=lambda each: each.error)
        courses.append((trials, [first, *release(trial, first, tolerance, phase + len(decays))]))
    best = min(range(len(depths)), key=lambda index: courses[index][1][-1].error * LATER**index)
    trials, chosen = courses[best]
    if chosen[-1].error >= 1:
        warnings.warn(
            f"on held-out entries the completion errs {chosen[-1].error:.2f} times as much as the columns' means: "
            f"{int(mask.sum())} entries of {tuple(matrix.shape)} may be too few, or have no low rank to find",
            stacklevel=2,
        )

    start = Fit.start(matrix, mask, 2 * rank, depths[best], eps, discrepant)
    fit, losses = replay(start, chosen, lambda share: report(phases - 1, int(share * steps), "all entries"))
    report(phases, 0, "done")
    left, right = fit.factors()
    return Completion(
        matrix=fit.completed().to(observed.dtype if observed.is_floating_point() else torch.float32),
        left=left,
        right=right,
        mean=fit.scale.mean,
        scale=fit.scale.scale,
        depth=depths[best],
        phases=[(each.decay, each.steps) for each in chosen],
        error=chosen[-1].error,
        errors=chosen[0].errors,
        losses=losses,
        trials={each.decay: each.error for each in trials},
        stopped=chosen[0].stopped,
    )


def _require(**holds: bool) -> None:
    for name, fine in holds.items():
        if not fine:
            raise ValueError(f"{name} is out of range: {RANGES[name]}")
