"""Starts from the gradient: the first step goes where full training would go, as far as the papers claim."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart.adapters import adapt
from eckart.adapters.layers.place import places

R = 2


def problem() -> tuple[nn.Sequential, Tensor, Tensor]:
    """A linear layer, inputs, and its gradient of the loss below, all in float64."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10, bias=False, dtype=torch.float64))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(10, 12, generator=generator))
    x = torch.randn(40, 12, generator=generator, dtype=torch.float64)
    loss(model(x)).backward()
    G = model[0].weight.grad
    model.zero_grad()
    return model, x, G


def loss(y: Tensor, batch: Any = None) -> Tensor:
    return (y.sin() * torch.linspace(1, 3, y.shape[-1], dtype=y.dtype)).mean()


def best(G: Tensor, rank: int) -> Tensor:
    U, S, Vh = torch.linalg.svd(G, full_matrices=False)
    return U[:, :rank] * S[:rank] @ Vh[:rank]


def started(model: nn.Module, method: str, x: Tensor, **options: Any) -> Any:
    adapt(model, method, rank=R, batches=[x], loss=loss, **options)
    (place,) = places(model).values()
    return place.live()[0]


def test_lora_ga_has_the_next_directions_at_the_output_and_the_first_at_the_input() -> None:
    model, x, G = problem()
    adapter = started(model, "lora-ga", x)
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    zeta = 10**0.25 / 16**0.5
    torch.testing.assert_close((U[:, R : 2 * R].T @ adapter.B).abs(), zeta * torch.eye(R, dtype=torch.float64))
    torch.testing.assert_close((adapter.A @ Vh[:R].T).abs(), zeta * torch.eye(R, dtype=torch.float64))
    assert adapter.scale == 16 / R**0.5
    assert adapter.delta().abs().max() < 1e-12


def test_lora_gas_first_step_is_the_best_step_of_twice_its_rank() -> None:
    model, x, G = problem()
    adapter = started(model, "lora-ga", x)
    loss(model(x)).backward()
    rate = 1e-4
    torch.optim.SGD(adapter.trained(), lr=rate).step()
    expected = -rate * adapter.scale**2 * 10**0.5 / 16 * best(G, 2 * R)
    error = (adapter.delta() - expected).norm() / expected.norm()
    assert error < 1e-3  # what is left is of second order in the rate


def test_lora_gas_step_is_nearer_to_full_trainings_than_loras() -> None:
    cosines = {}
    for method in ("lora-ga", "lora"):
        model, x, G = problem()
        adapter = started(model, method, x)
        loss(model(x)).backward()
        torch.optim.SGD(adapter.trained(), lr=1e-4).step()
        D = adapter.delta().detach()
        cosines[method] = float(-(D * G).sum() / (D.norm() * G.norm()))
    _, _, G = problem()
    assert abs(cosines["lora-ga"] - float(best(G, 2 * R).norm() / G.norm())) < 1e-3
    assert cosines["lora-ga"] > cosines["lora"]


def test_lora_one_starts_one_step_of_full_training_ahead_in_its_rank() -> None:
    model, x, G = problem()
    W = model[0].weight.detach().clone()
    adapter = started(model, "lora-one", x)
    S = torch.linalg.svdvals(G)
    expected = -(16 / R**0.5) / (128 * S[0]) * best(G, R)
    torch.testing.assert_close(adapter.delta(), expected)
    torch.testing.assert_close(adapter.B.norm(dim=0), adapter.A.norm(dim=1))
    assert adapter.frozen_B is None
    assert torch.equal(model[0].base.weight, W)
    torch.testing.assert_close(model(x), x @ (W + expected).T)
    assert loss(model(x)) < loss(x @ W.T)


def test_lora_sb_starts_at_the_best_rank_r_of_adams_first_step() -> None:
    model, x, G = problem()
    W = model[0].weight.detach().clone()
    adapter = started(model, "lora-sb", x, eta=1e-3)
    full = nn.Parameter(W.clone())
    full.grad = G
    torch.optim.Adam([full], lr=1e-3, eps=0.0).step()
    torch.testing.assert_close(adapter.delta(), best(full.detach() - W, R), atol=1e-10, rtol=1e-6)
    for basis in (adapter.B.T @ adapter.B, adapter.A @ adapter.A.T):
        torch.testing.assert_close(basis, torch.eye(R, dtype=torch.float64))
    assert [parameter.shape for parameter in adapter.trained()] == [(R, R)]


def test_lora_sbs_core_gradient_is_the_best_fit_of_the_full_one_in_its_subspaces() -> None:
    model, x, G = problem()
    adapter = started(model, "lora-sb", x, eta=1e-12)
    loss(model(x)).backward()
    projected = adapter.B @ adapter.B.T @ G @ adapter.A.T @ adapter.A
    torch.testing.assert_close(adapter.B @ adapter.R.grad @ adapter.A, projected, atol=1e-10, rtol=1e-6)


@pytest.mark.parametrize("method", ["lora-ga", "lora-one", "lora-sb"])
def test_a_gradient_of_zero_or_of_rank_one_is_no_error_and_what_is_left_can_learn(method: str) -> None:
    for part in (0.0, 1.0):
        model, x, _ = problem()
        adapt(model, method, rank=4, batches=[x], loss=lambda y, _, part=part: part * y[:, 0].sum() + 0 * y.sum())
        (place,) = places(model).values()
        adapter: Any = place.live()[0]
        loss(model(x)).backward()
        if method == "lora-sb":
            assert adapter.R.grad.abs().min() > 0
        else:
            assert (adapter.B.grad.norm(dim=0) + adapter.A.grad.norm(dim=1)).min() > 0


def test_lora_ga_works_above_half_of_the_smaller_side() -> None:
    model, x, _ = problem()
    before = model(x)
    adapt(model, "lora-ga", rank=8, batches=[x], loss=loss)
    torch.testing.assert_close(model(x), before)


@pytest.mark.parametrize(("method", "option"), [("lora-ga", "gamma"), ("lora-one", "gamma"), ("lora-sb", "eta")])
def test_options_that_are_not_positive_are_named(method: str, option: str) -> None:
    model, x, _ = problem()
    with pytest.raises(ValueError, match=f"{option}: 0; give a number above 0"):
        adapt(model, method, rank=R, batches=[x], loss=loss, **{option: 0})
    assert isinstance(model[0], nn.Linear)


def test_matrices_that_the_batches_do_not_use_are_named() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    for method in ("lora-ga", "eva"):
        with pytest.raises(ValueError, match=r"(gradient|covariance) of unused.*exclude='unused'"), pytest.warns():
            adapt(Half(), method, rank=1, batches=[torch.randn(4, 3)], loss=lambda y, _: y.sum())
