"""Drive the optimizer over given gradients, and what the papers' equations share."""

from typing import Any

import torch
from torch import Tensor, nn

from eckart.optim import LowRankOptimizer
from eckart.optim.keeping import basis

SHAPES = {"tall": (20, 12), "wide": (12, 20), "square": (14, 14)}
RATE, GAP, STEPS, RANK = 0.05, 3, 8, 4


def gradients(shape: tuple[int, int], rest: float = 0.3, rank: int = RANK, steps: int = STEPS) -> list[Tensor]:
    """A dominant part of a rank whose directions drift, and noise of size `rest`; float64."""
    source = torch.Generator().manual_seed(7)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=source, dtype=torch.float64)

    left, right = draw(shape[0], rank), draw(shape[1], rank)
    made = []
    for _ in range(steps):
        left, right = left + 0.2 * draw(*left.shape), right + 0.2 * draw(*right.shape)
        made.append(left @ right.mT + rest * draw(*shape))
    return made


def drive(
    method: str, shape: tuple[int, int], given: list[Tensor], **options: Any
) -> tuple[list[Tensor], list[Tensor], LowRankOptimizer]:
    """Weights before and after each step, and the basis that the state held after each, in dense columns."""
    p = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    optimizer = LowRankOptimizer([p], method=method, **({"lr": RATE, "rank": RANK, "gap": GAP} | options))
    weights, bases = [p.detach().clone()], []
    for gradient in given:
        p.grad = gradient.clone()
        optimizer.step()
        weights.append(p.detach().clone())
        bases.append(basis(optimizer.slot_of(p)).clone())
    return weights, bases, optimizer


def turn(t: Tensor) -> Tensor:
    """With the smaller side on the columns, where the papers put the basis; also the way back."""
    return t if t.shape[0] >= t.shape[1] else t.mT


def adam(m: Tensor, v: Tensor, g: Tensor, t: int, betas: tuple[float, float]) -> tuple[Tensor, Tensor, Tensor]:
    """m, v and the bias-corrected direction of Adam (1412.6980)."""
    m = betas[0] * m + (1 - betas[0]) * g
    v = betas[1] * v + (1 - betas[1]) * g**2
    return m, v, (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + 1e-8)


def gram_schmidt(Y: Tensor) -> Tensor:
    """QR with a positive diagonal."""
    Q, R = torch.linalg.qr(Y)
    return Q * R.diagonal().sign()


def holds(V: Tensor, X: Tensor) -> float:
    """The energy that a basis captures, as a share of the best of its rank."""
    best = torch.linalg.svdvals(X)[: V.shape[-1]].square().sum()
    return float((X @ V).square().sum() / best)
