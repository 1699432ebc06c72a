"""GaLore, Q-GaLore, Fira and APOLLO, which keep their moments, against their papers' equations in float64."""

import pytest
import torch
from optim_papers import SHAPES, Adam, Fed, drifting, gram_schmidt, same
from torch import Tensor

from eckart.linalg import dequantize, from_minifloat, quantize
from eckart.optim import METHODS
from eckart.optim.step.keeping import basis

BETAS = (0.9, 0.99)
GAP, STEPS, LR = 3, 8, 0.05
SOME = {"lr": LR, "rank": 4, "gap": GAP, "betas": BETAS}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def project(G: Tensor, P: Tensor) -> Tensor:
    """R = PᵀG for m < n, G Q for m ≥ n: the basis is on the smaller side."""
    return P.mT @ G if G.shape[0] < G.shape[1] else G @ P


def back(N: Tensor, P: Tensor, G: Tensor) -> Tensor:
    return P @ N if G.shape[0] < G.shape[1] else N @ P.mT


def channels(R: Tensor, G: Tensor) -> Tensor:
    """Norms over the side that was projected: of columns for m < n, of rows for m ≥ n."""
    return R.norm(dim=0 if G.shape[0] < G.shape[1] else 1, keepdim=True)


def leading(G: Tensor, r: int) -> Tensor:
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    return U[:, :r] if G.shape[0] < G.shape[1] else Vh[:r].mT


def drawn(fed: Fed) -> Tensor:
    """The basis of the last step, where only its seed is kept."""
    assert "basis" not in fed.state
    return basis(fed.optimizer.slot_of(fed.W))


@shapes
def test_galore_with_svd_is_algorithm_2(shape: tuple[int, int]) -> None:
    ours, adam = Fed(shape, method="galore", projector="svd", **SOME), Adam(BETAS)
    W = ours.W.detach().clone()
    for t, G in enumerate(drifting(shape, STEPS)):
        after = ours.step(G)
        if t % GAP == 0:
            P = ours.state["basis"].clone()  # whose signs an SVD is free to choose
            same(P @ P.mT, leading(G, 4) @ leading(G, 4).mT)
        W = W - LR * 0.25 * back(adam(project(G, P)), P, G)
        same(after, W)


@shapes
def test_galore_follows_the_basis_by_warm_steps(shape: tuple[int, int]) -> None:
    ours, adam = Fed(shape, method="galore", weight_decay=0.1, **SOME), Adam(BETAS)
    W = ours.W.detach().clone()
    for t, G in enumerate(drifting(shape, STEPS)):
        after = ours.step(G)
        if t == 0:
            P = ours.state["basis"].clone()  # three rounds from a random start
            same(P.mT @ P, torch.eye(4, dtype=torch.float64))
            assert project(G, P).square().sum() > 0.98 * project(G, leading(G, 4)).square().sum()
        elif t % GAP == 0:
            P = gram_schmidt((G @ G.mT if shape[0] < shape[1] else G.mT @ G) @ P)
        same(ours.state["basis"], P)
        W = W * (1 - LR * 0.1) - LR * 0.25 * back(adam(project(G, P)), P, G)
        same(after, W)


@shapes
def test_warm_steps_keep_the_order_and_signs_of_directions_so_moments_stay_theirs(shape: tuple[int, int]) -> None:
    ours, gradients = Fed(shape, method="galore", **SOME), drifting(shape, STEPS, drift=0.02)
    turns = []
    for t, G in enumerate(gradients):
        before = ours.state["basis"].clone() if t else None
        ours.step(G)
        if before is not None and t % GAP == 0:
            turns.append((before.mT @ ours.state["basis"]).diagonal()[:3])
    assert float(torch.stack(turns).min()) > 0.9


@shapes
def test_galore_8bit_is_galore_with_the_moments_that_its_codes_stand_for(shape: tuple[int, int]) -> None:
    ours = Fed(shape, method="galore-8bit", **SOME)
    M = V = torch.zeros(max(shape), 4, dtype=torch.float64)
    for t, G in enumerate(drifting(shape, STEPS), start=1):
        W = ours.W.detach().clone()
        after = ours.step(G)
        P = ours.state["basis"]
        R = project(G, P) if shape[0] >= shape[1] else project(G, P).mT
        M, V = 0.9 * M + 0.1 * R, 0.99 * V + 0.01 * R * R
        N = M / (1 - 0.9**t) / ((V / (1 - 0.99**t)).sqrt() + 1e-8)
        same(after, W - LR * 0.25 * back(N if shape[0] >= shape[1] else N.mT, P, G), 1e-6)
        for name, moment in (("exp_avg", M), ("exp_avg_sq", V)):
            kept = from_minifloat(ours.state[name], ours.state[name + "_scales"], signed=name == "exp_avg").double()
            assert float((kept - moment).abs().max()) <= 0.0906 * float(moment.abs().max())
            M, V = (kept, V) if name == "exp_avg" else (M, kept)
    for name in ("exp_avg", "exp_avg_sq"):
        assert ours.state[name].nbytes == 4 * max(shape)
        assert ours.state[name + "_scales"].nbytes == 4 * max(shape)


@shapes
def test_q_galore_works_with_the_four_bits_of_its_basis(shape: tuple[int, int]) -> None:
    ours, adam = Fed(shape, method="q-galore", moments="float32", schedule="fixed", **SOME), Adam(BETAS)
    W = ours.W.detach().clone()
    for t, G in enumerate(drifting(shape, STEPS)):
        before = basis(ours.optimizer.slot_of(ours.W)).clone() if t else None
        after = ours.step(G)
        P = basis(ours.optimizer.slot_of(ours.W))
        if before is not None and t % GAP == 0:
            exact = gram_schmidt((G @ G.mT if shape[0] < shape[1] else G.mT @ G) @ before)
            same(P, dequantize(quantize(exact, 4, block=256), torch.float64), 1e-7)
        W = W - LR * 0.25 * back(adam(project(G, P)), P, G)
        same(after, W)
    entries = 4 * min(shape)
    assert ours.state["basis"].nbytes + ours.state["basis_scales"].nbytes == 132 * -(-entries // 256)


def test_q_galore_looks_less_often_where_the_subspace_stays_and_not_where_it_moves() -> None:
    def gaps(drift: float) -> list[int]:
        ours, seen = Fed((40, 20), method="q-galore", **SOME), []
        for G in drifting((40, 20), 24, drift=drift):
            ours.step(G)
            seen.append(int(ours.state["gap"]))
        return seen

    still = gaps(0.0)
    assert still[0] == GAP
    doubled = [step for step in range(1, 24) if still[step] == 2 * still[step - 1]]
    assert doubled == [GAP, GAP + 2 * GAP, GAP + 2 * GAP + 4 * GAP]  # each refresh finds what it had, a whole gap later
    assert max(gaps(3.0)) == GAP


@shapes
def test_fira_is_algorithm_1(shape: tuple[int, int]) -> None:
    ours, adam = Fed(shape, method="fira", **SOME), Adam(BETAS)
    W, last, held = ours.W.detach().clone(), None, 0
    for t, G in enumerate(drifting(shape, STEPS)):
        G = G * (1.0, 5.0, 1.0)[t % 3]  # so that the limiter has work
        after = ours.step(G)
        P = ours.state["basis"]
        R = project(G, P)
        N = adam(R)
        S = (G - back(R, P, G)) * channels(N, G) / (channels(R, G) + 1e-8)
        if last is not None and S.norm() > 1.01 * last:
            S, held = S * 1.01 * last / S.norm(), held + 1
        last = S.norm()
        W = W - LR * 0.25 * (back(N, P, G) + S)
        same(after, W)
        same(ours.state["last_norm"], last)
    assert 0 < held < STEPS - 1


@shapes
@pytest.mark.parametrize("method", ["apollo", "apollo-mini"])
def test_apollo_is_algorithm_1(method: str, shape: tuple[int, int]) -> None:
    mini = method == "apollo-mini"
    ours, adam = Fed(shape, method=method, **{**SOME, "rank": 1 if mini else 4}), Adam(BETAS)
    W, last, alpha, sketches = ours.W.detach().clone(), None, 128**0.5 if mini else 1.0, []
    for t, G in enumerate(drifting(shape, STEPS)):
        G = G * (1.0, 5.0, 1.0)[t % 3]
        after = ours.step(G)
        P = drawn(ours)
        if t % GAP == 0:
            sketches.append(P)
        assert torch.equal(P, sketches[-1])
        R = project(G, P)
        N = adam(R)
        S = G * (N.norm() / R.norm() if mini else channels(N, G) / channels(R, G))
        if last is not None and S.norm() > 1.01 * last:
            S = S * 1.01 * last / S.norm()
        last = S.norm()
        W = W - LR * alpha * S
        same(after, W, 1e-6)  # of the 1e-8 in a quotient of norms
    assert len({float(P.sum()) for P in sketches}) == 3


@pytest.mark.parametrize("r", [8, 32])
def test_apollos_scale_is_that_of_all_of_adam_times_the_root_of_r_over_q(r: int) -> None:
    """Equation 9 of 2412.05270, at the first step, where Adam's direction is a sign."""
    ours = Fed((400, 128), method="apollo", lr=1.0, rank=r, eps=0.0)
    G = torch.randn(400, 128, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    scale = ((ours.W.detach().clone() - ours.step(G)) / G)[:, 0]
    full = 128**0.5 / G.norm(dim=1)
    P = drawn(ours)
    assert float(P.var()) == pytest.approx(1 / r, rel=0.1)
    assert float((scale / full).mean()) == pytest.approx((r / 128) ** 0.5, rel=1 / r)  # E 1/χ is 3/4r above 1


def test_apollo_minis_root_of_128_makes_up_for_rank_1_at_128_columns() -> None:
    """Its one scale is √(1/q) of the full one, so that with α = √128 both agree where q = 128."""
    G = torch.randn(4000, 128, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ours = Fed((4000, 128), method="apollo-mini", lr=1.0, eps=0.0)
    moved = (ours.W.detach().clone() - ours.step(G)).norm()
    assert float(moved / G.sign().norm()) == pytest.approx(1.0, rel=0.3)  # one sketch of the rows' 128 numbers


PUBLISHED = {  # learning rate, α, gap, betas: the pretraining runs of 60 M parameters
    "galore": (1e-2, 0.25, 200, (0.9, 0.999)),
    "galore-8bit": (1e-2, 0.25, 200, (0.9, 0.999)),
    "q-galore": (1.5e-2, 0.25, 200, (0.9, 0.999)),
    "fira": (1e-2, 0.25, 200, (0.9, 0.999)),
    "apollo": (1e-2, 1.0, 200, (0.9, 0.999)),
    "apollo-mini": (1e-2, 128**0.5, 200, (0.9, 0.999)),
}


@pytest.mark.parametrize("method", PUBLISHED)
def test_defaults_are_the_published_ones(method: str) -> None:
    row = METHODS[method]
    options = row.options()
    assert (row.lr, options["scale"], options["gap"], options["betas"]) == PUBLISHED[method]
    assert row.rank == (1 if method == "apollo-mini" else 0.25)
    assert options["limit"] == 1.01
    assert options["weight_decay"] == 0
