"""Few bits: 8-bit moments train as float32 ones do, bfloat16 weights move by less than their precision."""

import pytest
import torch
from optim_papers import Fed, drifting
from torch import Tensor

from eckart.linalg import from_minifloat

LONG = {"lr": 1e-3, "rank": 8, "gap": 1000}


def regression(method: str, steps: int = 300, dtype: torch.dtype = torch.float32, **options: object) -> float:
    """The loss of A W = B after some steps from mini-batches, over that at the start."""
    generator = torch.Generator().manual_seed(5)
    A, goal = torch.randn(512, 32, generator=generator), torch.randn(32, 24, generator=generator)
    fed = Fed((32, 24), dtype=dtype, method=method, rank=8, gap=20, **options)

    def loss(rows: Tensor) -> Tensor:
        return (A[rows] @ (fed.W.float() - goal)).square().mean()

    every = torch.arange(512)
    start = loss(every).item()
    for step in range(steps):
        fed.group["lr"] = 0.2 * (1 - step / steps)
        (gradient,) = torch.autograd.grad(loss(torch.randint(512, (64,), generator=generator)), fed.W)
        fed.step(gradient)
    return loss(every).item() / start


def test_moments_of_8_bits_keep_within_their_rounding_of_float32_ones_without_a_bias() -> None:
    whole, coded = Fed((64, 32), method="galore", **LONG), Fed((64, 32), method="galore-8bit", **LONG)
    base, generator = drifting((64, 32), 1)[0], torch.Generator().manual_seed(2)
    for _ in range(600):
        G = base + 3 * torch.randn(64, 32, generator=generator, dtype=torch.float64)
        whole.step(G)
        coded.step(G)
    assert torch.equal(whole.state["basis"], coded.state["basis"])
    first, second = (
        from_minifloat(coded.state[name], coded.state[name + "_scales"], signed=signed).double()
        for name, signed in (("exp_avg", True), ("exp_avg_sq", False))
    )
    ratio = second / whole.state["exp_avg_sq"]
    assert abs(float(ratio.mean()) - 1) < 0.05
    assert float(ratio.std()) < 0.25
    error = (first - whole.state["exp_avg"]) / whole.state["exp_avg"].square().mean().sqrt()
    assert abs(float(error.mean())) < 0.02
    assert float(error.std()) < 0.15


def test_training_ends_as_low_with_8_bits_as_with_32_and_with_a_basis_of_4() -> None:
    whole = regression("galore")
    assert whole < 0.05
    assert regression("galore-8bit") < 1.2 * whole
    assert regression("q-galore", schedule="fixed") < 1.2 * whole


@pytest.mark.parametrize("rank", [4, None])
def test_bfloat16_weights_follow_updates_below_their_precision(rank: int | None) -> None:
    """2⁻⁷ separates bfloat16's numbers from 1 on: steps of 2⁻¹⁰ would all be lost to the nearest one."""
    fed = Fed((32, 32), dtype=torch.bfloat16, method="galore", lr=2.0**-10, scale=1.0, rank=rank)
    fed.W.data.fill_(1.5)
    u = torch.ones(32, 1, dtype=torch.float64)
    lost = fed.W.detach().clone()
    for _ in range(64):
        after = fed.step(u @ u.mT)
        lost -= 2.0**-10 * 0.03
    assert torch.equal(lost, torch.full_like(lost, 1.5))
    moved = 1.5 - after.float().mean()
    exact = Fed((32, 32), dtype=torch.float32, method="galore", lr=2.0**-10, scale=1.0, rank=rank)
    exact.W.data.fill_(1.5)
    for _ in range(64):
        goal = exact.step(u @ u.mT)
    assert float(moved) == pytest.approx(float(1.5 - goal.mean()), rel=0.1)
    assert len(after.unique()) > 1
