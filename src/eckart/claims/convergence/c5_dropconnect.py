"""C5: DropConnect on the second of two linear layers adds in expectation what dropout between them adds."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from eckart.claims.claim import Check, Claim, Line, Panel, Result
from eckart.claims.convergence.masked_factors import MASKED, Masked, Penalty, agreement, measure_penalty
from eckart.nn import Progress
from eckart.regularizers import DropConnect, dropconnect_penalty, dropout_penalty


class Sizes(NamedTuple):
    """Two layers n → d → m on N samples, the rates, and masks for Monte Carlo."""

    m: int = 8
    n: int = 10
    width: int = 12
    samples: int = 30
    rates: tuple[float, ...] = (0.2, 0.5, 0.8)
    masks: int = 2500


SIZES = {"small": Sizes(), "paper": Sizes(rates=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), masks=50_000)}


def _on_first_weight(first: nn.Linear, second: nn.Linear, rate: float) -> nn.Module:
    return nn.Sequential(DropConnect(first, rate), second)


def run(
    seed: int,
    size: str,
    *,
    progress: Progress | None = None,
    penalty: Penalty = dropout_penalty,
    law: Masked = MASKED["DropConnect"],
) -> Result:
    """Measure what DropConnect and dropout add, at several rates, and what DropConnect on the first layer adds.

    Args:
        seed: of the layers, the data and the masks.
        size: "small" or "paper".
        progress: called after every rate.
        penalty: the formula that both are held against.
        law: (first, second, rate) → the network that is called DropConnect's.
    """
    sizes = SIZES[size]
    generator = torch.Generator().manual_seed(seed)
    U, V, X = _case(sizes, generator)
    laws = {"dropout": MASKED["dropout"], "second": law, "first": _on_first_weight}
    checks: list[Check] = []
    found: dict[str, list[float]] = {name: [] for name in laws}
    for index, rate in enumerate(sizes.rates):
        formula = float(penalty(U, V, rate, inputs=X))
        on_first = float(dropconnect_penalty(U, V, rate, inputs=X, layer="first"))
        measured = {
            name: measure_penalty(masked, U, V, X, rate, sizes.masks, generator) for name, masked in laws.items()
        }
        for kind, (mean, _) in measured.items():
            found[kind].append(mean)
        checks += [
            agreement(f"what DropConnect adds, rate {rate}", formula, measured["second"]),
            agreement(f"what dropout adds, rate {rate}", formula, measured["dropout"]),
            agreement(f"what DropConnect on the first layer adds, rate {rate}", on_first, measured["first"]),
        ]
        if progress:
            progress(index + 1, len(sizes.rates) + 1, f"rate {rate}")
    checks += _where_it_stops(U, V, sizes, generator, found)
    if progress:
        progress(len(sizes.rates) + 1, len(sizes.rates) + 1, "uncorrelated inputs")
    note = (
        "On the second layer's weight the two masks differ draw by draw and agree on average. On the first layer's "
        "weight DropConnect sees the variance of each input but not their correlations: with correlated inputs it "
        "adds another penalty, and dropout's again once the inputs are uncorrelated."
    )
    return Result(checks, [_panel(U, V, X, sizes, found)], note)


def _case(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Layers and strongly correlated inputs: one common factor, which a first layer of positive weights adds up."""

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    X = randn(1, sizes.samples) + 0.5 * randn(sizes.n, sizes.samples)
    U, V = randn(sizes.m, sizes.width), randn(sizes.n, sizes.width).abs()
    return U / sizes.width**0.5, V / sizes.n**0.5, X


def _where_it_stops(
    U: Tensor, V: Tensor, sizes: Sizes, generator: torch.Generator, found: dict[str, list[float]]
) -> list[Check]:
    """On the first layer it is another penalty, unless the inputs are uncorrelated."""
    white = 3 * torch.eye(sizes.n, dtype=U.dtype)
    formula = float(dropout_penalty(U, V, 0.5, inputs=white))
    measured = measure_penalty(_on_first_weight, U, V, white, 0.5, sizes.masks, generator)
    ratio = min(second / first for second, first in zip(found["second"], found["first"], strict=True))
    return [
        Check("DropConnect on the second layer over that on the first, correlated inputs", 2.0, ratio, 0.0, "≥"),
        agreement("on the first layer, uncorrelated inputs, rate 0.5", formula, measured),
    ]


def _panel(U: Tensor, V: Tensor, X: Tensor, sizes: Sizes, found: dict[str, list[float]]) -> Panel:
    grid = [0.02 * step for step in range(5, 42)]
    formula = [float(dropout_penalty(U, V, rate, inputs=X)) for rate in grid]
    first = [float(dropconnect_penalty(U, V, rate, inputs=X, layer="first")) for rate in grid]
    lines = [
        Line("dropout, drawn", sizes.rates, found["dropout"], "points"),
        Line("DropConnect on the second layer, drawn", sizes.rates, found["second"], "points"),
        Line("c Σ‖u_i‖²‖Xᵀv_i‖²", grid, formula, "dashed"),
        Line("DropConnect on the first layer, drawn", sizes.rates, found["first"], "points"),
        Line("c Σ‖u_i‖² v_iᵀdiag(XXᵀ)v_i", grid, first, "dashed"),
    ]
    return Panel("What a mask adds to the squared loss", "rate, the share dropped", "added loss", lines, "y")


CLAIM = Claim(
    id="C5",
    title="DropConnect is dropout in expectation",
    statement="Dropping the second layer's weights one by one adds to the expected squared loss of two linear layers "
    "exactly what dropping the columns between them adds.",
    source="arXiv 1910.14186; the first layer's penalty is our derivation",
    half="convergence",
    regime="the mask on the second layer's weight, squared loss; on the first layer's only with uncorrelated inputs",
    run=run,
)
