"""What tests of bases that move or are drawn share: an optimizer that is driven over gradients, and its bases."""

from typing import Any

import torch
from optim_papers import Adam, Fed
from torch import Tensor

from eckart.optim.step.keeping import basis

RATE, GAP, STEPS, RANK = 0.05, 3, 8, 3


def drive(
    method: str, shape: tuple[int, int], given: list[Tensor], **options: Any
) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
    """Weights before and after each step, the basis that is kept or drawn after each, and the state at the end."""
    fed = Fed(shape, method=method, **({"lr": RATE, "rank": RANK, "gap": GAP} | options))
    weights, bases = [fed.W.detach().clone()], []
    for G in given:
        weights.append(fed.step(G))
        bases.append(basis(fed.optimizer.slot_of(fed.W)).clone())
    return weights, bases, fed.state


def turn(t: Tensor) -> Tensor:
    """With the smaller side on the columns, where the papers put the basis; also the way back."""
    return t if t.shape[0] >= t.shape[1] else t.mT


def holds(V: Tensor, X: Tensor) -> float:
    """The energy that a basis captures, as a share of the best of its rank."""
    best = torch.linalg.svdvals(X)[: V.shape[-1]].square().sum()
    return float((X @ V).square().sum() / best)


def turn_moments(N: Adam, C: Tensor) -> None:
    """LDAdam's projection-aware moments: mean and variance, bias-corrected, seen through C = Vᵀ V'."""
    first, second = (1 - beta**N.t for beta in N.betas)
    mean, square = N.M / first, N.V / second
    N.M = first * mean @ C
    N.V = second * ((square - mean**2) @ C**2 + (mean @ C) ** 2).abs()
