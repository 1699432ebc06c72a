"""C2: weight decay on L factors is a Schatten-2/L quasi-norm of their product; it kills small values, spares large."""

from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from eckart.claims.claim import Check, Claim, Line, Panel, Result
from eckart.linalg import singular_values
from eckart.nn import Progress
from eckart.regularizers import DecayOptimum, decay_optimum, decay_penalty, imbalance, least_decay
from eckart.theory import descend, factorization, orthogonal_weights, product

Predict = Callable[[Tensor, int, float], DecayOptimum]


class Sizes(NamedTuple):
    """What is factorised, how deep, and for how long."""

    values: tuple[float, ...] = (3.0, 2.0, 1.0, 0.5, 0.2)
    depths: tuple[int, ...] = (3, 4)
    decay: float = 0.1
    rate: float = 0.05
    steps: int = 4000
    noise: float = 0.01


SIZES = {"small": Sizes(), "paper": Sizes()}


def run(
    seed: int,
    size: str,
    *,
    progress: Progress | None = None,
    predict: Predict = decay_optimum,
) -> Result:
    """Train L factors with weight decay from starts of every rank, and take the best minimum that descent finds.

    Args:
        seed: of the target's singular vectors and of the starts.
        size: "small" or "paper", here the same.
        progress: called after every depth.
        predict: (target, depth, decay) → the optimum.
    """
    sizes = SIZES[size]
    generator = torch.Generator().manual_seed(seed)
    P, Q = orthogonal_weights([len(sizes.values)] * 3, 1.0, generator=generator)
    target = P @ torch.diag(torch.tensor(sizes.values, dtype=torch.float64)) @ Q
    checks, lines = [], []
    for done, depth in enumerate(sizes.depths, start=1):
        minima, objectives = _minima(target, depth, sizes, generator)
        best = [W[objectives.argmin()] for W in minima]
        predicted, measured = predict(target, depth, sizes.decay).values, singular_values(product(best))
        checks += _optimum_checks(depth, best, predicted, measured) + _stop_checks(depth, minima, objectives)
        lines += [
            Line(f"trained, L = {depth}", sizes.values, measured.tolist(), "points"),
            Line(f"predicted, L = {depth}", sizes.values, predicted.tolist(), "dashed"),
        ]
        if progress:
            progress(done, len(sizes.depths), f"L = {depth}")
    checks.append(
        Check(f"what a full-rank start costs above the best, L = {depth}", 1e-3, _excess(objectives, -1), relation="≥")
    )
    panel = Panel(f"Weight decay λ = {sizes.decay} on L layers", "σ_i of the target", "σ_i of the product", lines)
    return Result(checks, [panel, _curves(sizes, predict)], NOTE)


def _minima(
    target: Tensor,  # (d, d)
    depth: int,
    sizes: Sizes,
    generator: torch.Generator,
) -> tuple[list[Tensor], Tensor]:  # L × (d + 1, d, d), (d + 1,)
    """Where descent ends from noisy balanced factors of the best fits of rank 0, 1, …, d, and its objectives there."""
    d = len(target)
    alive = torch.ones(d + 1, d, dtype=target.dtype).tril(-1)  # row r: which of the d values start alive
    first, *others = decay_optimum(target, depth, 0.0).weights
    starts = [alive.unsqueeze(-1) * first, *(W * alive.unsqueeze(-2) for W in others)]
    noisy = [W + sizes.noise * torch.randn(W.shape, dtype=W.dtype, generator=generator) for W in starts]
    path = descend(noisy, factorization(target), rate=sizes.rate, decay=sizes.decay)
    minima, _ = next(islice(path, sizes.steps, None))
    fits = (product(minima) - target).square().sum((-2, -1))
    return minima, (fits + sizes.decay * sum(W.square().sum((-2, -1)) for W in minima)) / 2


def _optimum_checks(depth: int, best: list[Tensor], predicted: Tensor, measured: Tensor) -> list[Check]:
    pairs = zip(predicted.tolist(), measured.tolist(), strict=True)
    return [
        *(Check(f"σ_{i}, L = {depth}", wanted, found, 5e-5) for i, (wanted, found) in enumerate(pairs, start=1)),
        Check(
            f"½Σ‖W_l‖² = ½LΣσ^(2/L), L = {depth}",
            float(least_decay(product(best), depth)),
            float(decay_penalty(best)),
            1e-6,
        ),
        Check(f"imbalance of the layers, L = {depth}", 0.0, float(imbalance(best).max()), 1e-8, "≤"),
    ]


def _stop_checks(depth: int, minima: list[Tensor], objectives: Tensor) -> list[Check]:
    """From a tiny start (row 0, noise alone) descent stays at 0, which is not the best."""
    tiny = float(singular_values(product([W[0] for W in minima]))[0])
    return [
        Check(f"σ_1 from a tiny start, L = {depth}", 0.0, tiny, 1e-8, "≤"),
        Check(f"what a tiny start costs above the best, L = {depth}", 1.0, _excess(objectives, 0), relation="≥"),
    ]


def _excess(objectives: Tensor, start: int) -> float:
    return float(objectives[start] - objectives.min())


def _curves(sizes: Sizes, predict: Predict) -> Panel:
    """How each depth shrinks one singular value."""
    grid = torch.linspace(1.2, 0.0, 121, dtype=torch.float64)
    lines = [
        Line(f"L = {depth}", grid.tolist(), predict(torch.diag(grid), depth, sizes.decay).values.tolist(), "dashed")
        for depth in (2, *sizes.depths)
    ]
    return Panel(f"What λ = {sizes.decay} leaves of a singular value", "σ of the target", "σ of the product", lines)


NOTE = (
    "More layers kill small singular values and hardly shrink large ones. The penalty is not convex, and descent finds "
    "the optimum only from a start of the right rank: from a tiny start it stays at 0, and from a full one it may keep "
    "a value that the optimum gives up."
)

CLAIM = Claim(
    id="C2",
    title="Weight decay on L factors is a Schatten-2/L quasi-norm",
    statement="The best product of L factors with weight decay λ minimises ½(s − σ_i)² + ½λL s^(2/L) for every value.",
    source="Shang, Liu, Cheng, arXiv 1606.00668; overview, arXiv 2503.19859",
    half="convergence",
    regime="the global minimum, squared loss; for L ≥ 3 descent may end in others, such as 0 from a tiny start",
    run=run,
)
