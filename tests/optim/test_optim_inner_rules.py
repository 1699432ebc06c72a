"""The inner rules against torch's optimizers and their papers' equations; all columns chosen: R is the gradient."""

import pytest
import torch
from optim_papers import SHAPES, Fed, drifting, same
from torch import Tensor

WHOLE = {"projector": "coordinates", "scale": 1.0, "lr": 0.05, "gap": 1000}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def fed(shape: tuple[int, int], inner: str, **options: object) -> Fed:
    """A matrix whose subspace is all of it."""
    return Fed(shape, inner=inner, rank=min(shape), **{**WHOLE, **options})


@shapes
def test_adamw_in_the_whole_space_is_torchs(shape: tuple[int, int]) -> None:
    ours = fed(shape, "adamw", weight_decay=0.1, eps=1e-6)
    W = torch.nn.Parameter(ours.W.detach().clone())
    theirs = torch.optim.AdamW([W], lr=0.05, weight_decay=0.1, eps=1e-6)
    for G in drifting(shape, 6):
        W.grad = G
        theirs.step()
        same(ours.step(G), W.detach())


@shapes
def test_adafactor_without_momentum_is_torchs_up_to_its_relative_step(shape: tuple[int, int]) -> None:
    ours = fed(shape, "adafactor", betas=(0.0, 0.999))
    W = torch.nn.Parameter(torch.ones(shape, dtype=torch.float64))
    theirs = torch.optim.Adafactor([W], lr=0.05, d=1.0, eps=(None, 1.0))  # its rate is min(lr, 1/√t) · max(1, RMS(W))
    for t, G in enumerate(drifting(shape, 6), start=1):
        torch.nn.init.ones_(W)
        W.grad, before = 10 * G, ours.W.detach().clone()
        theirs.step()
        same(before - ours.step(10 * G), (1 - W.detach()) * 0.05 / min(0.05, t**-0.5))


@shapes
def test_adafactor_clips_a_leap_at_a_root_mean_square_of_one_and_averages(shape: tuple[int, int]) -> None:
    ours, mean = fed(shape, "adafactor", betas=(0.9, 0.999)), torch.zeros(shape, dtype=torch.float64)
    for t, G in enumerate(drifting(shape, 4), start=1):
        G = G * (100.0 if t == 4 else 1.0)
        before = {name: ours.state[name].clone() for name in ("row", "column")} if t > 1 else None
        left, W = shape[0] < shape[1], ours.W.detach().clone()
        after, X = ours.step(G), G.mT if left else G
        row, column = (before["row"], before["column"]) if before else (0.0, 0.0)
        fresh = t**-0.8
        row = (1 - fresh) * row + fresh * X.square().mean(1, keepdim=True)
        column = (1 - fresh) * column + fresh * X.square().mean(0, keepdim=True)
        U = X / (row * column / row.mean()).sqrt()
        assert t < 4 or float(U.square().mean().sqrt()) > 1.2
        U = U / max(1.0, float(U.square().mean().sqrt()))
        mean = 0.9 * mean + 0.1 * (U.mT if left else U)
        same(after, W - 0.05 * mean)


@shapes
def test_lion_takes_the_sign_of_one_average_and_keeps_another(shape: tuple[int, int]) -> None:
    """2302.06675: c = β₁m + (1−β₁)g, W ← W − η(sign(c) + λW), m ← β₂m + (1−β₂)g."""
    ours, m = fed(shape, "lion", betas=(0.9, 0.99), weight_decay=0.1), torch.zeros(shape, dtype=torch.float64)
    W = ours.W.detach().clone()
    for G in drifting(shape, 6):
        W = W - 0.05 * (torch.sign(0.9 * m + 0.1 * G) + 0.1 * W)
        m = 0.99 * m + 0.01 * G
        same(ours.step(G), W)


@shapes
def test_momentum_is_sgds_with_dampening(shape: tuple[int, int]) -> None:
    ours, m = fed(shape, "momentum", betas=(0.9, 0.0)), torch.zeros(shape, dtype=torch.float64)
    W = ours.W.detach().clone()
    for G in drifting(shape, 6):
        m = 0.9 * m + 0.1 * G
        W = W - 0.05 * m
        same(ours.step(G), W)


@shapes
def test_orthogonal_moves_by_the_polar_factor_of_the_momentum(shape: tuple[int, int]) -> None:
    ours, M = fed(shape, "orthogonal", betas=(0.95, 0.0)), torch.zeros(shape, dtype=torch.float64)
    W = ours.W.detach().clone()
    for G in drifting(shape, 6):
        M = 0.95 * M + G
        U, _, Vh = torch.linalg.svd(M, full_matrices=False)
        W = W - 0.05 * 0.2 * max(shape) ** 0.5 * U @ Vh
        same(ours.step(G), W, 1e-7)


def test_sign_keeps_nothing() -> None:
    ours = fed((6, 4), "sign")
    before, G = ours.W.detach().clone(), drifting((6, 4), 1)[0]
    same(ours.step(G), before - 0.05 * G.sign())
    assert not {"exp_avg", "exp_avg_sq"} & set(ours.state)


@pytest.mark.parametrize("inner", ["adamw", "adafactor", "lion", "momentum", "orthogonal", "sign"])
def test_a_stack_is_its_matrices_one_by_one(inner: str) -> None:
    """With the residual of Fira and its limiter, which count for each matrix too."""
    options = {"inner": inner, "method": "fira", "rank": 3, "lr": 0.05, "gap": 3, "projector": "svd"}
    stack = Fed((2, 12, 8), stack=True, **options)
    singles = [Fed((12, 8), **options) for _ in range(2)]
    for single, W in zip(singles, stack.W.detach(), strict=True):
        single.W.data.copy_(W)
    gradients: list[list[Tensor]] = [drifting((12, 8), 5, seed=seed) for seed in range(2)]
    for t, (first, second) in enumerate(zip(*gradients, strict=True)):
        first = first * (5.0 if t == 2 else 1.0)
        after = stack.step(torch.stack([first, second]))
        same(after[0], singles[0].step(first), 1e-8)
        same(after[1], singles[1].step(second), 1e-8)
