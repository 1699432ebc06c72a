"""C4: dropout on a factorisation is a squared nuclear norm; at the width-adaptive rate its weight does not vanish."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from eckart.claims.claim import Check, Claim, Line, Panel, Result
from eckart.claims.convergence.masked_factors import (
    MASKED,
    Penalty,
    agreement,
    matrix_of,
    measure_penalty,
    random_factors,
    train_with_masks,
)
from eckart.linalg import prox_vector_k_support_squared, singular_values
from eckart.nn import Progress
from eckart.regularizers import adaptive_rate, dropout_penalty, fit_factors, odds


class Sizes(NamedTuple):
    """The spectrum of Y (m, n), the widths, the rates, masks for Monte Carlo, and steps with drawn masks."""

    values: tuple[float, ...] = (5.0, 4.0, 3.0, 2.0, 0.7)
    m: int = 20
    n: int = 15
    widths: tuple[int, ...] = (5, 8, 10, 20, 40)
    fixed: float = 0.5
    narrow: float = 0.2  # the adaptive rate's, at width 1
    samples: int = 4000
    steps: int = 600


SIZES = {"small": Sizes(), "paper": Sizes(samples=100_000, steps=5000)}


def run(
    seed: int,
    size: str,
    *,
    progress: Progress | None = None,
    penalty: Penalty = dropout_penalty,
    rate_at: Callable[[float, int], float] = adaptive_rate,
) -> Result:
    """Compare the penalty with drawn masks, and descend on the penalised objective at several widths.

    Args:
        seed: of the matrix, the starts and the masks.
        size: "small" or "paper".
        progress: called after every descent.
        penalty: what is taken for dropout's.
        rate_at: (rate at width 1, width) → the adaptive rate.
    """
    sizes = SIZES[size]
    generator = torch.Generator().manual_seed(seed)
    Y = matrix_of(sizes.values, sizes.m, sizes.n, generator)
    total = 2 * len(sizes.widths) + 2
    report = progress or (lambda done, total, label: None)
    checks = [_monte_carlo(Y, sizes, penalty, generator)]
    report(1, total, "drawn masks against the formula")
    spectra: dict[str, list[Tensor]] = {"fixed": [], "adaptive": []}
    for index, width in enumerate(sizes.widths):
        for kind, rate in (("fixed", sizes.fixed), ("adaptive", rate_at(sizes.narrow, width))):
            U, V, _ = fit_factors(Y, width, partial(penalty, rate=rate), generator=generator)
            spectra[kind].append(singular_values(U @ V.mT)[: len(sizes.values)])
            weight = odds(sizes.fixed) / width if kind == "fixed" else odds(sizes.narrow)
            checks += _optimum(f"{kind} rate, d = {width}", sizes.values, weight, spectra[kind][-1], U, V)
            report(2 + 2 * index + (kind == "adaptive"), total, f"{kind} rate, width {width}")
    checks += _weights(sizes, spectra)
    checks.append(_drawn(Y, sizes, generator))
    report(total, total, "trained with drawn masks")
    note = (
        "Every singular value loses one and the same threshold, which grows with the nuclear norm, and the columns "
        "end with equal ‖u_i‖‖v_i‖. At a fixed rate the weight is c/d: wide layers are hardly regularised. At the "
        "adaptive rate the answer is the same at every width."
    )
    return Result(checks, _panels(sizes, spectra), note)


def _expected(values: tuple[float, ...], weight: float) -> Tensor:
    """σ(Y) under weight·‖·‖_*²."""
    return prox_vector_k_support_squared(torch.tensor(values, dtype=torch.float64), 1, weight)


def _monte_carlo(Y: Tensor, sizes: Sizes, penalty: Penalty, generator: torch.Generator) -> Check:
    """The formula on data X that are correlated, at random factors."""
    U, V = random_factors(sizes.m, sizes.m, 10, generator)
    X = Y @ Y.mT / 5 + torch.randn(sizes.m, sizes.m, generator=generator, dtype=torch.float64)
    measured = measure_penalty(MASKED["dropout"], U, V, X, sizes.fixed, sizes.samples, generator)
    formula = float(penalty(U, V, sizes.fixed, inputs=X))
    return agreement("what dropout adds to the loss", formula, measured)


def _optimum(
    name: str, values: tuple[float, ...], weight: float, measured: Tensor, U: Tensor, V: Tensor
) -> list[Check]:
    error = float((measured - _expected(values, weight)).abs().max())
    sizes = U.norm(dim=0) * V.norm(dim=0)
    return [
        Check(f"largest |σ_i − closed form|, {name}", 0.0, error, 5e-5, "≤"),
        Check(f"std/mean of ‖u_i‖‖v_i‖, {name}", 0.0, float(sizes.std() / sizes.mean()), 1e-6, "≤"),
    ]


def _weight(values: tuple[float, ...], spectrum: Tensor) -> float:
    """λ from a measured spectrum: the threshold σ_1(Y) − σ_1 is λ‖Z‖_*."""
    return float((values[0] - spectrum[0]) / spectrum.sum())


def _weights(sizes: Sizes, spectra: dict[str, list[Tensor]]) -> list[Check]:
    """The adaptive weight has no width in it; the fixed one falls like 1/d."""
    adaptive = torch.stack(spectra["adaptive"])
    spread = float((adaptive.amax(0) - adaptive.amin(0)).max())
    first, last = sizes.widths[0], sizes.widths[-1]
    fall = _weight(sizes.values, spectra["fixed"][-1]) / _weight(sizes.values, spectra["fixed"][0])
    return [
        Check(f"spread of σ over the widths {first}…{last}, adaptive rate", 0.0, spread, 5e-5, "≤"),
        Check(f"weight at width {last} over that at {first}, fixed rate", first / last, fall, 1e-4),
    ]


def _drawn(Y: Tensor, sizes: Sizes, generator: torch.Generator) -> Check:
    """Real dropout, masks and all, ends at the same threshold."""
    U, V = train_with_masks(MASKED["dropout"], Y, 10, sizes.fixed, sizes.steps, generator)
    wanted = _expected(sizes.values, odds(sizes.fixed) / 10)
    error = float((singular_values(U @ V.mT)[: len(wanted)] - wanted).abs().max())
    return Check("largest |σ_i − closed form| after training with drawn masks, d = 10", 0.0, error, 0.1, "≤")


def _panels(sizes: Sizes, spectra: dict[str, list[Tensor]]) -> list[Panel]:
    index = list(range(1, len(sizes.values) + 1))
    adaptive = [Line("σ of the target", index, sizes.values)]
    adaptive += [
        Line(f"d = {d}", index, S.tolist(), "points") for d, S in zip(sizes.widths, spectra["adaptive"], strict=True)
    ]
    adaptive.append(Line("closed form", index, _expected(sizes.values, odds(sizes.narrow)).tolist(), "dashed"))
    found = [_weight(sizes.values, S) for S in spectra["fixed"]]
    free = [_weight(sizes.values, S) for S in spectra["adaptive"]]
    weights = [
        Line("fixed rate 0.5", sizes.widths, found, "points"),
        Line("c/d", sizes.widths, [odds(sizes.fixed) / d for d in sizes.widths], "dashed"),
        Line("adaptive rate", sizes.widths, free, "points"),
        Line("(1 − p)/p", sizes.widths, [odds(sizes.narrow)] * len(sizes.widths), "dashed"),
    ]
    return [
        Panel("Dropout at the adaptive rate", "index i", "σ_i of the product", adaptive),
        Panel("Weight of ‖·‖_*² against the width", "width d", "weight λ", weights, "xy"),
    ]


CLAIM = Claim(
    id="C4",
    title="Dropout is a squared nuclear norm",
    statement="Dropout between two linear layers of width d adds ((1−θ)/θ)Σ‖u_i‖²‖Xᵀv_i‖² to the squared loss, whose "
    "optimum is that of ((1−θ)/(θd))‖Z‖_*² with equalised columns; with θ(d) = p/(d−(d−1)p) it has no width in it.",
    source="arXiv 1710.05092; equalisation: 1806.09777; deep linear networks: 1905.11887",
    half="convergence",
    regime="two linear layers, squared loss, any width; at a fixed rate the weight vanishes as the width grows",
    run=run,
)
