"""Bytes are predicted before a training and measured in it."""

import json

import pytest
import torch
from optim_models import choices
from torch import Tensor, nn

from eckart.optim import METHODS, LowRankOptimizer, memory, param_groups, peak, step_in_backward


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    parts: list[nn.Module] = []
    for _ in range(3):
        parts += [nn.Linear(120, 200), nn.ReLU(), nn.Linear(200, 120), nn.LayerNorm(120)]
    return nn.Sequential(*parts).to(dtype)


def optimizer_of(model: nn.Module, method: str) -> LowRankOptimizer:
    return LowRankOptimizer(model, **choices(method, rank=20, gap=2))


def loss_of(model: nn.Module) -> Tensor:
    W = next(model.parameters())
    return model(torch.ones(2, W.shape[1], dtype=W.dtype)).square().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_states_are_predicted_to_the_byte(method: str, dtype: torch.dtype) -> None:
    model = network(dtype)
    optimizer = optimizer_of(model, method)
    predicted = memory(model, optimizer).predicted
    assert memory(model, optimizer).measured.states == 0
    for _ in range(3):
        loss_of(model).backward()
        optimizer.step()
    measured = memory(model, optimizer).measured
    assert (measured.states, measured.weights, measured.gradients) == (
        predicted.states,
        predicted.weights,
        predicted.gradients,
    )


@pytest.mark.parametrize("method", METHODS)
def test_states_of_convolutions_and_stacks_are_predicted_to_the_byte(method: str) -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 24, 3)
            self.gate = nn.Parameter(torch.ones(3, 24, 40) / 10)

        def forward(self, x: Tensor) -> Tensor:
            return (self.conv(x).mean((-2, -1)) @ self.gate).square().sum()

    model = Experts()
    optimizer = LowRankOptimizer(
        [{"params": [model.conv.weight], "rank": 1}, {"params": [model.gate], "rank": 1, "stack": True}], method=method
    )
    predicted = memory(model, optimizer).predicted.states
    for _ in range(2):
        model(torch.arange(300.0).reshape(4, 3, 5, 5).sin()).backward()
        optimizer.step()
    assert memory(model, optimizer).measured.states == predicted


@pytest.mark.parametrize("layered", [False, True], ids=["step", "backward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_workspace_is_predicted_within_a_factor(method: str, dtype: torch.dtype, layered: bool) -> None:
    model = network(dtype)
    optimizer = optimizer_of(model, method)
    if layered:
        step_in_backward(optimizer)
    largest = 0
    for i in range(4):
        loss = loss_of(model)
        if not layered:
            loss.backward()
        if i:  # the first step makes the states
            found = memory(model, optimizer, loss.backward if layered else optimizer.step)
            assert found.measured.workspace is not None
            largest = max(largest, found.measured.workspace)
        else:
            (loss.backward if layered else optimizer.step)()
        optimizer.step() if layered else None
        optimizer.zero_grad()
    expected = found.predicted.workspace or 0
    beside = found.predicted.gradients + 2 * 200 * 2 * 4 if layered else 0  # the pass's own gradients
    assert 0.3 * expected < largest < 1.5 * expected + beside + 2**16


def test_a_gradient_is_one_layers_in_the_backward_pass() -> None:
    model = network()
    optimizer = optimizer_of(model, "galore")
    every = memory(model, optimizer).predicted.gradients
    step_in_backward(optimizer)
    loss_of(model).backward()
    optimizer.step()
    found = memory(model, optimizer)
    assert every == sum(p.nbytes for p in model.parameters())
    assert found.predicted.gradients == found.measured.gradients == 120 * 200 * 4


def test_a_backward_pass_of_steps_allocates_less_by_the_gradients() -> None:
    peaks = {}
    for layered in (False, True):
        model = network()
        optimizer = optimizer_of(model, "galore")
        if layered:
            step_in_backward(optimizer)

        def whole(model: nn.Module = model, optimizer: LowRankOptimizer = optimizer) -> None:
            loss_of(model).backward()
            optimizer.step()
            optimizer.zero_grad()

        whole()
        peaks[layered] = peak(whole)
    every = sum(p.nbytes for p in model.parameters())
    assert peaks[False] > every
    assert peaks[True] < peaks[False] - 0.7 * every  # of six equal ones, one and its workspace stay


@pytest.mark.parametrize(("method", "frees"), [("galore", True), ("fira", False)])
def test_what_micro_batches_keep_is_told(method: str, frees: bool) -> None:
    model = network()
    optimizer = optimizer_of(model, method)
    every = memory(model, optimizer).predicted.gradients
    handle = step_in_backward(optimizer, accumulate=2)
    for _ in range(2):
        loss_of(model).backward()
    optimizer.step()
    found = memory(model, optimizer)
    assert found.predicted.gradients == every  # the first step has no basis yet
    assert (found.between_refreshes < every / 2) == frees
    handle.largest = 0
    for _ in range(2):
        loss_of(model).backward()
    optimizer.step()
    assert handle.largest <= found.between_refreshes
    assert ("between refreshes" in str(found)) == frees


def test_norms_of_clipping_are_counted() -> None:
    model = network()
    optimizer = optimizer_of(model, "fira")
    step_in_backward(optimizer, max_grad_norm=1.0)
    loss_of(model).backward()
    optimizer.step()
    found = memory(model, optimizer)
    assert found.measured.states == found.predicted.states


def test_a_model_on_meta_is_predicted_like_a_real_one() -> None:
    with torch.device("meta"):
        unreal = network()
    real = network()
    predicted = [memory(model, optimizer_of(model, "fira")).predicted for model in (unreal, real)]
    assert predicted[0] == predicted[1]


def test_views_count_as_what_they_keep_alive() -> None:
    model = nn.Linear(8, 8, bias=False)
    optimizer = LowRankOptimizer(model, rank=2)
    model(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    before = memory(model, optimizer).measured.states
    optimizer.state[model.weight]["basis"] = torch.zeros(8, 100)[:, :2]
    assert memory(model, optimizer).measured.states == before + 8 * 98 * 4


def test_it_prints_a_table_and_gives_plain_data() -> None:
    model = network()
    found = memory(model, LowRankOptimizer(param_groups(model, 8)))
    assert [line.split()[0] for line in str(found).splitlines()] == [
        "predicted", "weights", "gradients", "states", "workspace", "total",
    ]  # fmt: skip
    assert json.loads(json.dumps(found.to_json()))["measured"]["workspace"] is None
