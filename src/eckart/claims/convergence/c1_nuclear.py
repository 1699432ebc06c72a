"""C1: weight decay on two factors is the nuclear norm of their product; it takes λ off every singular value."""

from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from eckart.claims.claim import Check, Claim, Line, Panel, Result
from eckart.linalg import balance, nuclear_norm, singular_values
from eckart.nn import Progress
from eckart.regularizers import DecayOptimum, decay_optimum, decay_penalty, imbalance
from eckart.theory import descend, factorization, orthogonal_weights, product


class Sizes(NamedTuple):
    """What is factorised, with which decays, and for how long."""

    values: tuple[float, ...] = (3.0, 2.0, 1.0, 0.5, 0.2)
    decays: tuple[float, ...] = (0.1, 0.3, 0.6, 1.2)
    rate: float = 0.1
    steps: int = 4000
    others: int = 100


SIZES = {"small": Sizes(), "paper": Sizes()}


def run(
    seed: int,
    size: str,
    *,
    progress: Progress | None = None,
    predict: Callable[[Tensor, int, float], DecayOptimum] = decay_optimum,
) -> Result:
    """Train two factors with weight decay from a random start, for several decays.

    Args:
        seed: of the starts.
        size: "small" or "paper", here the same.
        progress: called after every decay.
        predict: (target, depth, decay) → the optimum.
    """
    sizes = SIZES[size]
    generator = torch.Generator().manual_seed(seed)
    target = torch.diag(torch.tensor(sizes.values, dtype=torch.float64))
    checks, lines = _variational(target, sizes.others, generator), []
    for done, decay in enumerate(sizes.decays, start=1):
        weights = _train(target, decay, sizes, generator)
        measured = singular_values(product(weights))
        predicted = predict(target, 2, decay).values
        checks += [
            Check(f"σ_{i + 1} at λ = {decay}", float(wanted), float(found), 5e-5)
            for i, (wanted, found) in enumerate(zip(predicted, measured, strict=True))
        ]
        checks.append(Check(f"‖UᵀU − VᵀV‖ at λ = {decay}", 0.0, float(imbalance(weights)), 1e-8, "≤"))
        lines += _lines(decay, sizes.values, measured, predicted)
        if progress:
            progress(done, len(sizes.decays), f"λ = {decay}")
    panel = Panel("What weight decay λ on two factors leaves", "σ_i of the target", "σ_i of the product", lines)
    note = (
        "Every singular value loses λ and those below it vanish: weight decay on two factors is a nuclear norm on "
        "their product. The factors end balanced, and no other factors of the same product have a smaller norm."
    )
    return Result(checks, [panel], note)


def _train(target: Tensor, decay: float, sizes: Sizes, generator: torch.Generator) -> list[Tensor]:
    """The factors after gradient descent from Gaussian ones."""
    start = [0.5 * torch.randn(target.shape, dtype=target.dtype, generator=generator) for _ in range(2)]
    path = descend(start, factorization(target), rate=sizes.rate, decay=decay)
    return next(islice(path, sizes.steps, None))[0]


def _variational(X: Tensor, others: int, generator: torch.Generator) -> list[Check]:
    """‖X‖_* is the least of ½(‖U‖² + ‖V‖²) and of Σ‖u_i‖‖v_i‖ over UVᵀ = X: balance attains it, nothing goes below."""
    B, A = balance(X, torch.eye(len(X), dtype=X.dtype))
    norm = float(nuclear_norm(X))
    squares, paths = [], []
    for _ in range(others):
        P, Q = orthogonal_weights([len(X)] * 3, 1.0, generator=generator)
        stretch = torch.randn(len(X), dtype=X.dtype, generator=generator).exp()
        U, V = B @ Q * stretch @ P, A.mT @ Q / stretch @ P
        squares.append(float(decay_penalty([U, V])))
        paths.append(float((U.norm(dim=0) * V.norm(dim=0)).sum()))
    return [
        Check("½(‖U‖² + ‖V‖²) of balanced factors of the target", norm, float(decay_penalty([B, A])), 1e-10),
        Check(f"the least of {others} other factors", norm, min(squares), 1e-10, "≥"),
        Check("the least Σ‖u_i‖‖v_i‖ of them", norm, min(paths), 1e-10, "≥"),
    ]


def _lines(decay: float, values: tuple[float, ...], measured: Tensor, predicted: Tensor) -> list[Line]:
    return [
        Line(f"λ = {decay}", values, measured.tolist(), "points"),
        Line(f"(σ − {decay})_+", values, predicted.tolist(), "dashed"),
    ]


CLAIM = Claim(
    id="C1",
    title="Weight decay on two factors is a nuclear norm",
    statement="A product of two factors fitted to a matrix with weight decay λ has the singular values (σ_i − λ)_+.",
    source="Srebro, Rennie, Jaakkola (2004); overview, arXiv 2503.19859",
    half="convergence",
    regime="two layers of a width of at least the optimum's rank, squared loss; from a generic start",
    run=run,
)
