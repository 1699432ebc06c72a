"""Dropout without the noise: the penalty that it adds, the optimum in closed form, and what it is in a real network.

python examples/dropout_as_a_penalty.py
"""

from functools import partial

import torch
from torch import nn

from eckart.linalg import singular_values
from eckart.regularizers import (
    Dropout,
    adaptive_rate,
    compare_penalties,
    dropout_optimum,
    dropout_penalty,
    fit_factors,
    monte_carlo_penalty,
)

torch.manual_seed(0)

# 1. Two linear layers and squared loss: what dropout adds is a formula.
X, Y = torch.randn(200, 12), torch.randn(200, 6)
model = nn.Sequential(nn.Linear(12, 16, bias=False), Dropout(0.5), nn.Linear(16, 6, bias=False))


def squared(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return (model(batch[0]) - batch[1]).square().sum()


def cross_entropy(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


formula = dropout_penalty(model[2].weight, model[0].weight.mT, 0.5, inputs=X.mT).item()
mean, error = monte_carlo_penalty(model, squared, (X, Y), samples=1000)
print(f"dropout 0.5 adds {mean:.1f} ± {error:.1f} to the squared loss; the formula says {formula:.1f}\n")

# 2. So training with dropout ends where the closed form is: a threshold on the singular values, weaker in wide layers.
target = torch.diag(torch.tensor([5.0, 4.0, 3.0, 2.0, 0.7]))
print("width  rate            singular values: closed form            descent on loss + penalty")
for width in (5, 20, 80):
    for name, rate in (("fixed", 0.5), ("adaptive", adaptive_rate(0.2, width))):
        predicted = dropout_optimum(target, width, rate).singular_values
        U, V, _ = fit_factors(target, width, partial(dropout_penalty, rate=rate))
        columns = ["  ".join(f"{value:.3f}" for value in S[:5]) for S in (predicted, singular_values(U @ V.mT))]
        print(f"{width:5}  {name:8} {rate:.2f}   {columns[0]}   {columns[1]}")

# 3. In a network with GELU and cross entropy there is no formula, but a second-order approximation whose error shows.
labels = Y.argmax(dim=1)
print("\nwhat dropout adds to the cross entropy of an MLP:")
for rate in (0.05, 0.2, 0.5):
    mlp = nn.Sequential(nn.Linear(12, 32), nn.GELU(), Dropout(rate), nn.Linear(32, 6))
    mlp[3].weight.data *= 5
    print(f"rate {rate:.2f}: {compare_penalties(mlp, cross_entropy, (X, labels), samples=1000)}")
