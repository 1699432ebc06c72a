"""SubTrack++, online subspace descent and Dion, whose bases move, against their papers' equations."""

import pytest
import torch
from optim_driving import GAP, RANK, RATE, STEPS, drive, holds, turn, turn_moments
from optim_papers import SHAPES, Adam, drifting, same

from eckart.optim import LowRankOptimizer

shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
STEP = 5e-3  # σ is some hundreds here: angles of about a radian


@shapes
def test_subtrack_turns_its_basis_along_a_geodesic_and_its_moments_with_it(shape):
    given = drifting(shape, STEPS)
    weights, bases, _ = drive("subtrack++", shape, given, basis_lr=STEP)
    X, N = [turn(g) for g in given], Adam((0.9, 0.999))
    S, last, limited, angles = bases[0], None, 0, []
    assert holds(S, X[0]) > 0.99
    for t in range(1, STEPS + 1):
        G = X[t - 1].mT  # the paper's side: S (m, r) on the left
        if t > 1 and (t - 1) % GAP == 0:
            A = torch.linalg.lstsq(S, G).solution
            U, sizes, Vh = torch.linalg.svd(-2 * (G - S @ A) @ A.mT, full_matrices=False)
            u, angle, w = U[:, :1], STEP * sizes[0], Vh[:1].mT
            angles.append(angle)
            old, S = S, (S @ w * angle.cos() - u * angle.sin()) @ w.mT + S @ (torch.eye(RANK).double() - w @ w.mT)
            turn_moments(N, old.mT @ S)
        same(bases[t - 1], S)
        R = X[t - 1] @ S
        D = N(R)
        rest = D.norm(dim=1, keepdim=True) / R.norm(dim=1, keepdim=True) * (X[t - 1] - R @ S.mT)
        if last is not None and rest.norm() > 1.01 * last:
            rest, limited = rest * 1.01 * last / rest.norm(), limited + 1
        last = rest.norm()
        same(turn(weights[t]), turn(weights[t - 1]) - RATE * 0.25 * (D @ S.mT + rest), tolerance=1e-8)
    assert all(0.1 < angle < 2 for angle in angles)
    assert limited


def test_a_geodesic_step_goes_towards_the_gradient():
    given = drifting((40, 24), STEPS, noise=0.01)
    W = torch.nn.Parameter(torch.zeros(40, 24).double())
    optimizer = LowRankOptimizer([W], method="subtrack++", rank=RANK, gap=1, basis_lr=1e-4)
    W.grad = given[0]
    optimizer.step()
    for _ in range(20):
        before = holds(optimizer.state[W]["basis"], given[-1])
        W.grad = given[-1]
        optimizer.step()
        assert holds(optimizer.state[W]["basis"], given[-1]) > before
    V = optimizer.state[W]["basis"]
    same(V.mT @ V, torch.eye(RANK).double())


@shapes
def test_online_subspace_descent_trains_its_basis_by_adam_on_what_it_misses(shape):
    given = drifting(shape, STEPS)
    weights, bases, _ = drive("osd", shape, given)
    X = [turn(g) for g in given]
    P = bases[0].clone().requires_grad_()
    learner = torch.optim.AdamW([P], lr=5e-3, weight_decay=0.0)
    N = Adam((0.9, 0.999))
    for t in range(1, STEPS + 1):
        same(turn(weights[t]), turn(weights[t - 1]) - RATE * 0.25 * N(X[t - 1] @ P.detach()) @ P.detach().mT)
        if t > 1:
            unit = X[t - 1] / X[t - 1].norm()
            (unit - unit @ P @ P.mT).square().sum().backward()
            learner.step()
            learner.zero_grad()
        same(bases[t - 1], P.detach())
    assert (P - bases[0]).abs().max() > 0.01


def test_an_online_basis_follows_the_schedule_of_the_rate_and_rests_at_a_zero_gradient():
    given = drifting((20, 12), STEPS)
    W = torch.nn.Parameter(torch.zeros(20, 12).double())
    optimizer = LowRankOptimizer([W], method="osd", rank=RANK, lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    moves = []
    for gradient in [given[0], given[1], 0 * given[1], given[1]]:
        W.grad = gradient
        before = optimizer.state[W]["basis"].clone() if optimizer.state[W] else None
        optimizer.step()
        schedule.step()
        moves.append(0 if before is None else (optimizer.state[W]["basis"] - before).abs().max().item())
    assert moves[2] == 0.0
    assert optimizer.state[W]["basis_moves"].item() == 2
    assert moves[1] == pytest.approx(5e-3 * 0.5, rel=1e-3)  # Adam's first step: its rate, whatever the gradient
    assert moves[3] == pytest.approx(5e-3 * 0.5**3, rel=0.3)


@shapes
def test_dion_moves_by_both_factors_of_a_power_step_on_the_momentum(shape):
    given = [0 * torch.ones(shape).double(), *drifting(shape, STEPS)]
    weights, bases, state = drive("dion", shape, given)
    same(weights[1], weights[0])
    Q = bases[0]  # as it was drawn
    assert Q.shape == (shape[1], RANK)
    M = torch.zeros(shape).double()
    for t, G in enumerate(given[1:], start=1):
        M = M + G
        P = torch.linalg.qr(M @ Q).Q
        R = M.mT @ P
        M = M - (1 - 0.95) * P @ R.mT
        Q = R / R.norm(dim=0)
        same(weights[t + 1], weights[t] - RATE * (shape[0] / shape[1]) ** 0.5 * P @ Q.mT)
        same(bases[t].abs(), Q.abs())  # the signs of columns are open
    same(state["error"], M)


def test_dion_leaves_directions_alone_which_the_momentum_does_not_have():
    W = torch.nn.Parameter(torch.zeros(20, 12))
    optimizer = LowRankOptimizer([W], method="dion", rank=RANK, lr=1.0)
    source = torch.Generator().manual_seed(0)
    u, w = (torch.randn(k, 1, generator=source) for k in (20, 12))
    W.grad = u @ w.mT
    optimizer.step()
    expected = -((20 / 12) ** 0.5) * (u / u.norm()) @ (w / w.norm()).mT
    torch.testing.assert_close(W.detach(), expected, rtol=1e-5, atol=1e-6)
    assert optimizer.state[W]["basis"].norm(dim=0).min() > 0.5
