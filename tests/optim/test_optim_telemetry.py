"""What a training with low-rank states noted of itself."""

import pytest
import torch
from optim_models import choices
from torch import Tensor, nn

from eckart.linalg import captured_energy
from eckart.optim import METHODS, LowRankOptimizer, telemetry, watch


def train(model: nn.Module, optimizer: LowRankOptimizer, steps: int) -> list[Tensor]:
    """The gradients of the one matrix."""
    source = torch.Generator().manual_seed(0)
    gradients = []
    for _ in range(steps):
        x = torch.randn(9, model[0].weight.shape[1], generator=source)  # type: ignore[index]
        model(x).square().mean().backward()
        gradients.append(model[0].weight.grad.clone())  # type: ignore[index, union-attr, operator]
        optimizer.step()
        optimizer.zero_grad()
    return gradients


@pytest.mark.parametrize("shape", [(16, 10), (10, 16)])
def test_captured_energy_is_that_of_the_old_and_the_new_basis(shape: tuple[int, int]) -> None:
    model = nn.Sequential(nn.Linear(*shape, bias=False))
    optimizer = LowRankOptimizer(model, lr=1e-3, rank=3, gap=2)
    watch(optimizer)
    train(model, optimizer, 2)
    state = optimizer.state[model[0].weight]
    old = state["basis"].clone()
    G = train(model, optimizer, 1)[0]
    X = G if state["side"] else G.mT  # `captured_energy` has the basis on the left
    noted = telemetry(optimizer)["0.weight"]
    assert noted["refreshes"] == 2
    assert noted["captured_before"] == pytest.approx(float(captured_energy(X, old)), rel=1e-5)
    assert noted["captured_after"] == pytest.approx(float(captured_energy(X, state["basis"])), rel=1e-5)
    assert noted["captured_after"] > noted["captured_before"]


@pytest.mark.parametrize("method", METHODS)
def test_the_updates_norm_is_that_of_what_is_written(method: str) -> None:
    model = nn.Sequential(nn.Linear(16, 10, bias=False))
    optimizer = LowRankOptimizer(model, lr=1e-2, **choices(method, rank=4))
    watch(optimizer)
    train(model, optimizer, 2)
    before = model[0].weight.detach().clone()
    train(model, optimizer, 1)
    group = optimizer.param_groups[0]
    moved = (model[0].weight.detach() - before).norm() / (group["lr"] * group["scale"])
    assert telemetry(optimizer)["0.weight"]["update"] == pytest.approx(float(moved), rel=2e-2)


def test_watching_changes_no_step_and_no_state() -> None:
    found = []
    for on in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 10))
        optimizer = LowRankOptimizer(model, rank=3, method="fira", gap=2)
        watch(optimizer, on)
        train(model, optimizer, 5)
        found.append((model[0].weight, optimizer.state_dict()["state"]))
    assert torch.equal(found[0][0], found[1][0])
    assert [each.keys() for each in found[0][1].values()] == [each.keys() for each in found[1][1].values()]


def test_nothing_was_noted_before_watch() -> None:
    optimizer = LowRankOptimizer(nn.Linear(8, 8), rank=2)
    with pytest.raises(ValueError, match=r"call watch\(optimizer\)"):
        telemetry(optimizer)
    watch(optimizer)
    assert telemetry(optimizer) == {}
