"""Flora, GoLore, LDAdam, FRUGAL and SUMO, which transport their moments, against their papers' equations."""

from types import SimpleNamespace

import pytest
import torch
from optim_driving import GAP, RANK, RATE, STEPS, drive, holds, turn, turn_moments
from optim_papers import SHAPES, Adam, drifting, gram_schmidt, same

from eckart.optim import METHODS, TRANSPORTS, LowRankOptimizer

shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@shapes
def test_flora_is_adafactor_with_its_momentum_in_a_sketch_that_is_drawn_anew(shape):
    given = drifting(shape, STEPS)
    weights, sketches, _ = drive("flora", shape, given)
    X = [turn(g) for g in given]
    p, q = X[0].shape
    M, row, column = torch.zeros(p, RANK).double(), torch.zeros(p, 1).double(), torch.zeros(1, q).double()
    clipped = 0
    for t in range(1, STEPS + 1):
        A = sketches[t - 1]
        if t > 1 and (t - 1) % GAP == 0:
            M = M @ sketches[t - 2].mT @ A
        decay = 1 - t**-0.8
        square = X[t - 1] ** 2 + 1e-30
        row = decay * row + (1 - decay) * square.mean(1, keepdim=True)
        column = decay * column + (1 - decay) * square.mean(0, keepdim=True)
        U = X[t - 1] / (row @ column / row.mean()).sqrt()
        M = 0.9 * M + 0.1 * U @ A
        update = M @ A.mT
        size = update.square().mean().sqrt()
        clipped += bool(size > 1)
        same(turn(weights[t]), turn(weights[t - 1]) - RATE * update / max(1, size))
    assert 0 < clipped < STEPS
    assert all((sketches[t] == sketches[t - 1]).all() == bool(t % GAP) for t in range(1, STEPS))


def test_a_new_sketch_lengthens_the_momentum_by_the_root_of_q_over_r_on_average():
    p, q, r = 64, 64, 8
    source = torch.Generator().manual_seed(0)
    squares = []
    for _ in range(200):
        old, new = (torch.randn(q, r, generator=source) / r**0.5 for _ in range(2))
        M = torch.randn(p, r, generator=source)
        before = M.norm()
        TRANSPORTS["rotate"](SimpleNamespace(V=new), old, {"exp_avg": M})
        squares.append((M.norm() / before).square())
    assert torch.stack(squares).mean().item() == pytest.approx(q / r, rel=0.1)


def test_flora_does_not_run_away_where_sketches_are_drawn_faster_than_momentum_fades():
    X, Y = (torch.randn(100, k, generator=torch.Generator().manual_seed(k)) for k in (64, 48))
    W = torch.nn.Parameter(torch.zeros(48, 64))
    optimizer = LowRankOptimizer([W], method="flora", rank=4, lr=1e-2, gap=5)
    losses = []
    for _ in range(40):
        loss = (X @ W.mT - Y).square().mean()
        W.grad = torch.autograd.grad(loss, W)[0]
        optimizer.step()
        losses.append(loss.item())
    assert max(losses) < 1.5 * losses[0]


@shapes
def test_golore_is_adam_in_a_random_subspace_with_the_momentum_brought_along(shape):
    given = drifting(shape, STEPS)
    weights, bases, _ = drive("golore", shape, given)
    X, N = [turn(g) for g in given], Adam((0.9, 0.999))
    for t in range(1, STEPS + 1):
        P = bases[t - 1]
        same(P.mT @ P, torch.eye(RANK).double())
        if t > 1:
            N.M = N.M @ bases[t - 2].mT @ P
        same(turn(weights[t]), turn(weights[t - 1]) - RATE * 0.25 * N(X[t - 1] @ P) @ P.mT)
    assert holds(bases[0], X[0]) < 0.9  # it does not look at the gradient


def test_golore_begins_with_the_leading_subspace_where_its_projector_is_set_later():
    given = drifting((20, 12), STEPS, noise=0.01)
    W = torch.nn.Parameter(torch.zeros(20, 12).double())
    optimizer = LowRankOptimizer([W], method="golore", projector="power", rank=RANK, gap=GAP)
    for t, gradient in enumerate(given):
        if t == 2 * GAP:
            assert holds(optimizer.state[W]["basis"], given[GAP]) > 0.99
            optimizer.param_groups[0]["projector"] = "orthonormal"
        W.grad = gradient
        optimizer.step()
    assert holds(optimizer.state[W]["basis"], given[2 * GAP]) < 0.9


@shapes
def test_ldadam_feeds_back_what_gradient_and_momentum_lose(shape):
    given = drifting(shape, STEPS)
    weights, bases, state = drive("ldadam", shape, given, gap=1)
    beta = 0.908
    X, N = [turn(g) for g in given], Adam((beta, 0.99))
    E, V = torch.zeros_like(X[0]), bases[0]
    assert holds(V, X[0]) > 0.99
    for t in range(1, STEPS + 1):
        A, old = X[t - 1] + E, V
        E = A
        if t > 1:
            B = beta * N.M / (1 - beta ** (t - 1)) @ old.mT + (1 - beta) * A
            V = gram_schmidt(B.mT @ B @ old)
            before = N.M
            turn_moments(N, old.mT @ V)
            E = E + beta / (1 - beta) * (before @ old.mT - N.M @ V.mT)
        E = E - A @ V @ V.mT
        same(bases[t - 1], V)
        same(turn(weights[t]), turn(weights[t - 1]) - RATE * N(A @ V) @ V.mT)
    same(state["error"], E)
    assert (state["error"] @ V).abs().max() < 1e-10 < E.abs().max()


def test_nothing_that_ldadam_saw_is_lost():
    """Gradients, by their share of the momentum: what is in it and in the error is what came."""
    given = drifting((20, 12), STEPS)
    W = torch.nn.Parameter(torch.zeros(20, 12).double())
    optimizer = LowRankOptimizer([W], method="ldadam", rank=RANK)
    beta, total = 0.908, torch.zeros(20, 12).double()
    for gradient in given:
        W.grad = gradient.clone()
        before = optimizer.state[W]["exp_avg"] @ optimizer.state[W]["basis"].mT if optimizer.state[W] else 0 * total
        error = optimizer.state[W]["error"].clone() if optimizer.state[W] else 0 * total
        optimizer.step()
        state = optimizer.state[W]
        after = state["exp_avg"] @ state["basis"].mT + (1 - beta) * state["error"]
        same(after, beta * before + (1 - beta) * (gradient + error))


@shapes
def test_frugal_is_adam_on_drawn_columns_and_signs_elsewhere(shape):
    given = drifting(shape, STEPS)
    weights, chosen, _ = drive("frugal", shape, given)
    X = [turn(g) for g in given]
    for t in range(1, STEPS + 1):
        columns = chosen[t - 1]
        if (t - 1) % GAP == 0:
            N = Adam((0.9, 0.999))
        update = X[t - 1].sign()
        update[:, columns] = N(X[t - 1][:, columns])
        same(turn(weights[t]), turn(weights[t - 1]) - RATE * update)
    assert len({tuple(each.tolist()) for each in chosen}) > 1


def test_frugal_takes_a_quarter_of_each_matrix():
    matrices = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((64, 40), (16, 80), (3, 7))]
    optimizer = LowRankOptimizer(matrices, method="frugal")
    for W in matrices:
        W.grad = torch.ones_like(W)
    optimizer.step()
    assert METHODS["frugal"].rank == 0.25
    assert [optimizer.state[W]["exp_avg"].shape for W in matrices] == [(64, 10), (80, 4), (7, 1)]


@shapes
def test_sumo_moves_by_the_polar_factor_of_a_momentum_that_is_brought_along_and_by_the_rest_of_the_gradient(shape):
    given = drifting(shape, STEPS, noise=1e-4)
    weights, _, _ = drive("sumo", shape, given)
    X = [turn(g) for g in given]
    M = torch.zeros(X[0].shape[0], RANK).double()
    Q = torch.zeros(X[0].shape[1], RANK).double()
    for t in range(1, STEPS + 1):
        if (t - 1) % GAP == 0:
            old, Q = Q, torch.linalg.svd(X[t - 1]).Vh[:RANK].mT
            M = M @ old.mT @ Q
        M = 0.95 * M + X[t - 1] @ Q
        U, _, Vh = torch.linalg.svd(M, full_matrices=False)
        outside = X[t - 1] - X[t - 1] @ Q @ Q.mT
        update = outside + 0.2 * max(shape) ** 0.5 * U @ Vh @ Q.mT
        torch.testing.assert_close(turn(weights[t]), turn(weights[t - 1]) - RATE * update, rtol=1e-7, atol=1e-7)
        assert outside.norm() * RATE > 1e-5  # which the tolerance would see
