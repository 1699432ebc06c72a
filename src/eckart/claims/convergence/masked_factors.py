"""What the claims about masks share: a matrix of a given spectrum, its two layers, training them with drawn masks."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from eckart.claims.claim import Check
from eckart.regularizers import METHODS, Dropout, monte_carlo_penalty
from eckart.theory import orthogonal_weights

Penalty = Callable[..., Tensor]  # (U, V, rate, *, inputs=None, …) → scalar
Masked = Callable[..., nn.Module]  # (first, second, rate, …) → the two layers with a mask in place
MASKED: dict[str, Masked] = {name: method.masked for name, method in METHODS.items() if method.masked}


def matrix_of(values: tuple[float, ...], m: int, n: int, generator: torch.Generator) -> Tensor:  # (m, n)
    """A matrix with these singular values and uniformly drawn singular vectors, float64."""
    right, left = orthogonal_weights([n, len(values), m], 1.0, generator=generator)
    return left * torch.tensor(values, dtype=torch.float64) @ right


def random_factors(m: int, n: int, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:  # (m, d), (n, d)
    """U and V with independent entries, such that UVᵀ is of order 1."""
    draw = [torch.randn(rows, width, generator=generator, dtype=torch.float64) for rows in (m, n)]
    return draw[0] / width**0.5, draw[1]


def two_layers(U: Tensor, V: Tensor) -> tuple[nn.Linear, nn.Linear]:
    """The linear layers x ↦ Vᵀx and h ↦ Uh."""
    layers = []
    for weight in (V.mT, U):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
        layer.weight.data.copy_(weight)
        layers.append(layer)
    return layers[0], layers[1]


def measure_penalty(
    masked: Masked,
    U: Tensor,
    V: Tensor,
    X: Tensor,
    rate: float,
    samples: int,
    generator: torch.Generator,
    **options: int,
) -> tuple[float, float]:
    """E‖Y − masked network(X)‖² − ‖Y − UVᵀX‖² by Monte Carlo, and its standard error, for Y = UVᵀX + noise."""
    model = masked(*two_layers(U, V), rate, **options)
    fit = U @ V.mT @ X
    Y = fit + torch.randn(fit.shape, generator=generator, dtype=fit.dtype)

    def loss(model: nn.Module, X: Tensor) -> Tensor:
        return (Y - model(X.mT).mT).square().sum()

    mean, error = monte_carlo_penalty(model, loss, X, samples=samples, generator=generator)
    return float(mean), float(error)


def agreement(name: str, predicted: float, measured: tuple[float, float]) -> Check:
    """Whether Monte Carlo agrees with a formula within five of its standard errors, so that no seed is unlucky."""
    mean, error = measured
    return Check(f"{name} (± {error:.2g})", predicted, mean, 5 * error)


def train_with_masks(
    masked: Masked, target: Tensor, width: int, rate: float, steps: int, generator: torch.Generator, **options: int
) -> tuple[Tensor, Tensor]:  # (m, d), (n, d)
    """Factorise a matrix by Adam with a fresh mask for every sample and step, the learning rate going to zero.

    A step sees each column of the target 64 times, each time under another mask.
    """
    m, n = target.shape
    first, second = two_layers(*random_factors(m, n, width, generator))
    model = masked(first, second, rate, **options)
    for mask in model.modules():
        if isinstance(mask, Dropout):
            mask.generator = generator
    batch = torch.eye(n, dtype=target.dtype).repeat(64, 1)
    wanted = target.mT.repeat(64, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(batch) - wanted).square().sum().div(64).backward()
        optimizer.step()
        schedule.step()
    return second.weight.detach(), first.weight.detach().mT
