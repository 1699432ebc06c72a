"""Ranks given by name, and ranks taken away: the best smaller pair, and moments that turn with its basis."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart.adapters import adapt, shrink
from eckart.adapters.layers.place import adapters
from eckart.linalg import product_truncate


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 6))


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def loss_of(model: nn.Module, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return (model(torch.randn(16, 10, generator=generator)) - torch.randn(16, 6, generator=generator)).square().mean()


def begun(method: str = "lora", steps: int = 4, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = network()
    adapt(model, method, rank=4, **options)
    optimizer = torch.optim.Adam(trained(model), lr=0.05)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
    return model, optimizer


def of_exact_rank(model: nn.Module, rank: int) -> None:
    """Make every product of this rank, though its factors keep theirs."""
    with torch.no_grad():
        for _, adapter in adapters(model, "default"):
            adapter.B[:, rank:] = adapter.B[:, :rank] @ torch.ones(rank, adapter.rank - rank)


def test_a_pair_shrinks_to_the_best_of_lower_rank_and_is_balanced() -> None:
    model, optimizer = begun()
    before = {name: (a.B.detach().clone(), a.A.detach().clone()) for name, a in adapters(model, "default")}
    assert shrink(model, optimizer, 2) == {"0": 2, "2": 2, "4": 2}
    for name, adapter in adapters(model, "default"):
        B, A = product_truncate(*before[name], rank=2)
        torch.testing.assert_close(adapter.B @ adapter.A, B @ A, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(adapter.B.T @ adapter.B, adapter.A @ adapter.A.T, atol=1e-5, rtol=1e-4)
        assert adapter.rank == adapter.settings.ranks[name] == 2


def test_gradients_follow_as_a_fresh_backward_pass_gives_them() -> None:
    model, _ = begun()
    of_exact_rank(model, 2)
    model.zero_grad()
    loss = loss_of(model, 50)
    loss.backward()
    shrink(model, None, 2)
    followed = [p.grad.clone() for p in trained(model)]
    model.zero_grad()
    again = loss_of(model, 50)
    torch.testing.assert_close(again, loss.detach())
    again.backward()
    for p, grad in zip(trained(model), followed, strict=True):
        torch.testing.assert_close(grad, p.grad, atol=1e-5, rtol=1e-3)


def test_first_moments_turn_as_gradients_and_second_moments_stay_of_squares() -> None:
    model, optimizer = begun()
    of_exact_rank(model, 2)
    for p in trained(model):  # a moment that is this gradient, as after a first step of momentum
        p.grad = None
    loss_of(model, 50).backward()
    for p in trained(model):
        optimizer.state[p]["exp_avg"].copy_(p.grad)
    shrink(model, optimizer, 2)
    for p in trained(model):
        torch.testing.assert_close(optimizer.state[p]["exp_avg"], p.grad)
        assert bool((optimizer.state[p]["exp_avg_sq"] >= 0).all())
        assert optimizer.state[p]["exp_avg_sq"].shape == p.shape
        assert optimizer.state[p]["step"] == 4
    optimizer.step()


def test_gradients_and_first_moments_of_one_sign_turn_as_others() -> None:
    turned = []
    for sign in (1, -1):
        model, optimizer = begun()
        for p in trained(model):
            p.grad = torch.full_like(p, sign)
            optimizer.state[p]["exp_avg"].fill_(sign)
        shrink(model, optimizer, 2)
        turned.append([each for p in trained(model) for each in (p.grad, optimizer.state[p]["exp_avg"])])
    for one, other in zip(*turned, strict=True):
        assert torch.equal(one, -other)


def test_a_share_of_energy_gives_each_matrix_the_rank_that_it_needs() -> None:
    model, optimizer = begun()
    of_exact_rank(model, 1)
    assert set(shrink(model, optimizer, 0.999).values()) == {1}


def test_an_adapter_that_also_trains_a_magnitude_keeps_one_direction() -> None:
    model, optimizer = begun("dora")
    assert shrink(model, optimizer, {"2": 0}) == {"0": 4, "2": 1, "4": 4}


def test_a_pair_that_has_learned_nothing_and_bad_wishes_are_refused_with_nothing_changed() -> None:
    model, optimizer = begun(steps=0)
    before = [id(p) for p in trained(model)]
    for to, message in (
        (2, "fewer than 2 directions"),
        (0, "to: 0"),
        (1.5, "to: 1.5"),
        (True, "to: True"),
        ({"0": -1}, "to: -1"),
        ({"9": 1}, "no matrix '9'"),
    ):
        with pytest.raises(ValueError, match=message):
            shrink(model, optimizer, to)
    with pytest.raises(ValueError, match="no adapter 'other'"):
        shrink(model, optimizer, 2, name="other")
    assert [id(p) for p in trained(model)] == before
    vectors = network()
    adapt(vectors, "vera")
    with pytest.raises(TypeError, match="no directions to drop"):
        shrink(vectors, None, 2)


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        ({"9": 2}, "not a matrix to adapt; closest"),
        (0, "rank: 0"),
        (99, "rank: 99"),
        (True, "rank: True"),
        (2.0, "2.0"),
    ],
)
def test_ranks_that_cannot_be_are_named(rank: Any, message: str) -> None:
    model = network()
    with pytest.raises(ValueError, match=message):
        adapt(model, rank=rank)


def test_a_mapping_says_which_matrices_are_adapted() -> None:
    model = network()
    assert adapt(model, rank={"0": 2, "2": 0, "4": 1}).settings.ranks == {"0": 2, "4": 1}
