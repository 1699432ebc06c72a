"""D4: on digits, more dropout gives a learned map of lower rank: as the closed form says where the network is linear.

scikit-learn's 1797 digits, on their 20 leading principal components, and their ten classes, both centred. Two linear
layers with dropout between them and squared loss have the optimum of `dropout_optimum` in the metric of the data. An
MLP with two hidden layers has none; there the effective rank of its last hidden features is measured.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from eckart.claims.claim import Check, Claim, Line, Panel, Result
from eckart.claims.data._digits import CLASSES, all_digits
from eckart.claims.data._spearman import spearman
from eckart.linalg import effective_rank, singular_values, truncated_svd
from eckart.nn import Progress
from eckart.regularizers import Dropout, dropout_optimum

RATES = (0.0, 0.2, 0.4, 0.6, 0.8)
COMPONENTS, WIDTH = 20, 16


class Sizes(NamedTuple):
    """Steps of the linear network and of the MLP, and MLPs for each rate."""

    linear: int
    mlp: int
    networks: int


SIZES = {"small": Sizes(500, 200, 1), "paper": Sizes(10_000, 3000, 5)}


NOTE = (
    "Where the network is linear, dropout's effect on the spectrum of the learned map is a formula, and training with "
    "drawn masks ends there. In an MLP nothing of the kind is proved: that the rank of its features moves with the "
    "rate is an observation on this data set, and shown as such."
)


def run(
    seed: int,
    size: str,
    *,
    progress: Progress | None = None,
    rate_in_training: Callable[[float], float] = float,
) -> Result:
    """Train both networks at every rate, and measure the rank of what they learn.

    Args:
        seed: of the weights and masks.
        size: "small" or "paper".
        progress: called with the networks that are trained.
        rate_in_training: rate on the axis → rate of the dropout layers; the identity.
    """
    sizes = SIZES[size]
    X, Y = _digits()
    generator = torch.Generator().manual_seed(seed)
    total = len(RATES) * (1 + sizes.networks)
    report = progress or (lambda done, total, label: None)
    predicted, linear, mlp, errors = [], [], [], []
    for index, rate in enumerate(RATES):
        wanted = dropout_optimum(Y.mT, WIDTH, rate, inputs=X.mT).singular_values[: Y.shape[1]]
        found = _linear_spectrum(X, Y, rate_in_training(rate), sizes.linear, generator)
        predicted.append(float(effective_rank(wanted, power=1)))
        linear.append(float(effective_rank(found, power=1)))
        errors.append(float((found - wanted).abs().max() / wanted[0]))
        report(index * (1 + sizes.networks) + 1, total, f"linear network, rate {rate}")
        ranks = []
        for network in range(sizes.networks):
            ranks.append(_mlp_rank(X, Y, rate_in_training(rate), sizes.mlp, generator))
            report(index * (1 + sizes.networks) + network + 2, total, f"MLP, rate {rate}")
        mlp.append(sum(ranks) / len(ranks))
    return Result(_checks(predicted, linear, mlp, errors), _panels(predicted, linear, mlp), NOTE)


def _digits() -> tuple[Tensor, Tensor]:  # (N, 20), (N, 10)
    """Centred images on their leading principal components, and centred one-hot classes; float32."""
    X, labels = all_digits()
    U, S, _ = truncated_svd(X - X.mean(0), COMPONENTS, method="exact")
    Y = nn.functional.one_hot(labels, CLASSES).double()
    return (U * S).float(), (Y - Y.mean(0)).float()


def _train(model: nn.Module, X: Tensor, Y: Tensor, steps: int, rate: float) -> None:
    """Adam on the mean squared loss of the whole data set, the learning rate going to zero."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(X) - Y).square().sum(1).mean().backward()
        optimizer.step()
        schedule.step()


def _layer(n: int, m: int, bias: bool, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(n, m, bias=bias)
    layer.weight.data.copy_(torch.randn(m, n, generator=generator) / n**0.5)
    if bias:
        layer.bias.data.zero_()
    return layer


def _linear_spectrum(X: Tensor, Y: Tensor, rate: float, steps: int, generator: torch.Generator) -> Tensor:
    """Singular values of what two linear layers with dropout make of the data, after training with drawn masks."""
    first, second = _layer(X.shape[1], WIDTH, False, generator), _layer(WIDTH, Y.shape[1], False, generator)
    _train(nn.Sequential(first, Dropout(rate, generator=generator), second), X, Y, steps, 0.03)
    with torch.no_grad():
        return singular_values(second(first(X)))[: Y.shape[1]]


def _mlp_rank(X: Tensor, Y: Tensor, rate: float, steps: int, generator: torch.Generator) -> float:
    """Effective rank of the last hidden features of an MLP with dropout in front of its last layer."""
    hidden = nn.Sequential(
        _layer(X.shape[1], 64, True, generator), nn.GELU(), _layer(64, 64, True, generator), nn.GELU()
    )
    head = _layer(64, Y.shape[1], True, generator)
    _train(nn.Sequential(hidden, Dropout(rate, generator=generator), head), X, Y, steps, 0.005)
    with torch.no_grad():
        features = hidden(X)
    return float(effective_rank(singular_values(features - features.mean(0)), power=1))


def _checks(predicted: list[float], linear: list[float], mlp: list[float], errors: list[float]) -> list[Check]:
    checks = []
    for rate, wanted, found, error in zip(RATES, predicted, linear, errors, strict=True):
        checks.append(Check(f"effective rank of the linear map, rate {rate}", wanted, found, 0.02, relative=True))
        checks.append(Check(f"largest |σ_i − closed form| over σ_1, rate {rate}", 0.0, error, 0.04, "≤"))
    return [
        *checks,
        Check("MLP: Spearman correlation of rate and effective rank", -0.7, spearman(RATES, mlp), 0.0, "≤"),
        Check(f"MLP: effective rank at rate {RATES[-1]} over that at 0", 0.9, mlp[-1] / mlp[0], 0.0, "≤"),
    ]


def _panels(predicted: list[float], linear: list[float], mlp: list[float]) -> list[Panel]:
    return [
        Panel(
            "Two linear layers on digits",
            "dropout rate",
            "effective rank (of σ) of the map on the data",
            [Line("trained with masks", RATES, linear, "points"), Line("closed form", RATES, predicted, "dashed")],
        ),
        Panel("An MLP on digits", "dropout rate", "effective rank (of σ), features", [Line("trained", RATES, mlp)]),
    ]


CLAIM = Claim(
    id="D4",
    title="More dropout, lower rank: digits",
    statement="On digits, two linear layers trained with dropout reach the spectrum of the closed form in the metric "
    "of the data, whose effective rank falls with the rate; in an MLP the rank of the last features falls too.",
    source="arXiv 1710.05092 and 1806.09777 for the linear network; the MLP is an observation",
    half="data",
    regime="the formula: two linear layers and squared loss; the MLP: a trend on this data set, no theorem",
    run=run,
)
