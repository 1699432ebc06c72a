"""Corners of a step: other layouts in memory, other types, gradients of low rank, what waits for a device."""

import copy
from typing import Any

import pytest
import torch
from optim_models import Zoo, batches, differences, optimizer_for
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from eckart.optim import METHODS, LowRankOptimizer, step_in_backward, telemetry, watch
from eckart.optim import optimizer as core
from eckart.optim.budget.accounting import gradient_bytes
from eckart.optim.step.state import HOST

WAITING = ("ldadam", "dion", "sumo")  # as docs/training.md says
WAITS = {"_local_scalar_dense", "is_nonzero", "nonzero", "_linalg_eigh", "lift_fresh"}  # the last: `torch.tensor(…)`


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("of_gradient", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("of_weight", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_adamw_moves_each_entry_by_its_own_gradient_wherever_it_lies(
    dtype: torch.dtype, of_weight: torch.memory_format, of_gradient: torch.memory_format
) -> None:
    start = normal(4, 3, 3, 3, seed=0)
    one, other = (nn.Parameter(start.clone(memory_format=torch.preserve_format)) for _ in range(2))
    other.data = other.data.to(dtype=dtype, memory_format=of_weight)
    torchs = torch.optim.AdamW([one], lr=0.1, weight_decay=0.0)
    ours = LowRankOptimizer([{"params": [other], "rank": None}], lr=0.1)
    for step in range(3):
        one.grad = normal(4, 3, 3, 3, seed=step).bfloat16().float()
        other.grad = one.grad.to(dtype=dtype, memory_format=of_gradient)
        torchs.step()
        ours.step()
    assert float((one - other.float()).detach().abs().max()) < (1e-6 if dtype == torch.float32 else 0.05)


def test_moments_that_were_kept_in_another_layout_go_on_where_they_belong() -> None:
    """Of a checkpoint that was written before the model went to channels_last."""
    weights = [nn.Parameter(normal(4, 3, 3, 3, seed=0)) for _ in range(2)]
    optimizers = [LowRankOptimizer([{"params": [p], "rank": None}], lr=0.1) for p in weights]
    for step in range(4):
        if step == 2:
            weights[1].data = weights[1].data.to(memory_format=torch.channels_last)
        for p, optimizer in zip(weights, optimizers, strict=True):
            p.grad = normal(4, 3, 3, 3, seed=step).to(memory_format=torch.preserve_format)
            optimizer.step()
    torch.testing.assert_close(*weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize("transport", ["rotate", "ldadam"])
def test_columns_bring_moments_of_float64_along(transport: str) -> None:
    W = nn.Parameter(normal(8, 6, seed=0).double())
    optimizer = LowRankOptimizer([W], rank=2, method="frugal", transport=transport, gap=2)
    for step in range(4):
        W.grad = normal(8, 6, seed=step).double()
        optimizer.step()
    assert optimizer.state[W]["exp_avg"].dtype == torch.float64


def test_a_gradient_that_the_basis_holds_whole_is_no_norm_to_grow_from() -> None:
    """Of fewer tokens than r: what is left is rounding, and would hold later gradients down to 1.01 of it."""
    W = nn.Parameter(torch.zeros(64, 48))
    optimizer = LowRankOptimizer([W], rank=16, method="fira", lr=1e-3, gap=1000)
    W.grad = normal(64, 4, seed=0) @ normal(4, 48, seed=1)
    optimizer.step()
    assert float(optimizer.state[W]["last_norm"]) == 0
    W.grad = normal(64, 48, seed=2)
    optimizer.step()
    assert float(optimizer.state[W]["last_norm"]) > 1


@pytest.mark.parametrize("method", ["dion", "ldadam", "frugal"])
def test_what_is_formed_of_a_gradients_size_is_formed_for_few_matrices_at_a_time(method: str) -> None:
    weights = [nn.Parameter(torch.empty(4096, 4096, device="meta")) for _ in range(3)]
    optimizer = LowRankOptimizer(weights, rank=4, method=method)
    assert [len(part) for part in core.portions(weights, optimizer.param_groups[0])] == [1, 1, 1]


@pytest.mark.parametrize("method", ["dion", "osd", "galore"])
def test_what_micro_batches_keep_is_foreseen_where_a_basis_moves_at_each_step(method: str) -> None:
    model = nn.Sequential(*(nn.Linear(32, 32, bias=False) for _ in range(3)))
    optimizer = LowRankOptimizer(model, method=method, rank=4)
    handle = step_in_backward(optimizer, accumulate=2)
    for _ in range(2):
        handle.largest = 0
        for seed in range(2):
            model(normal(8, 32, seed=seed)).square().mean().backward()
        optimizer.step()
    assert handle.largest == gradient_bytes(optimizer, 2)[1]


def test_loading_leaves_a_step_in_backward_that_was_begun() -> None:
    """R of micro-batches is in a basis that loading replaces."""
    models, optimizers = zip(*(_layered() for _ in range(2)), strict=True)
    saved = copy.deepcopy(optimizers[0].state_dict())
    models[0](normal(8, 16, seed=1)).square().mean().backward()
    for optimizer in optimizers:
        optimizer.load_state_dict(saved)
    for model, optimizer in zip(models, optimizers, strict=True):
        for seed in (2, 3):
            model(normal(8, 16, seed=seed)).square().mean().backward()
        optimizer.step()
    assert differences(*models) == []


def _layered() -> tuple[nn.Module, LowRankOptimizer]:
    """A model after a step of two micro-batches."""
    model = nn.Linear(16, 16)
    with torch.no_grad():
        model.weight.copy_(normal(16, 16, seed=5))
        model.bias.zero_()
    optimizer = LowRankOptimizer(model, rank=3)
    step_in_backward(optimizer, accumulate=2)
    for _ in range(2):
        model(normal(8, 16, seed=0)).square().mean().backward()
    optimizer.step()
    return model, optimizer


def test_telemetry_leaves_out_what_made_no_step() -> None:
    model = nn.Sequential(nn.Linear(8, 6, bias=False), nn.Linear(8, 6, bias=False))
    optimizer = LowRankOptimizer(model, rank=2)
    watch(optimizer)
    model[0].weight.grad, model[1].weight.grad = torch.zeros(6, 8), torch.ones(6, 8)
    optimizer.step()
    assert list(telemetry(optimizer)) == ["1.weight"]


class Waiting(TorchDispatchMode):
    """Notes operations that would have the host wait for a device, but of what is on the host anyway."""

    def __init__(self, host: set[int]) -> None:
        super().__init__()
        self.host, self.found = host, set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITS and args[0].data_ptr() not in self.host:
            self.found.add(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_an_ordinary_step_does_not_wait_for_the_device(
    method: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "require_finite", lambda *_, **__: None)  # which looks on the CPU alone
    model = Zoo(dtype)
    optimizer = optimizer_for(model, method, weight_decay=0.1)
    for batch in batches(2):
        optimizer.zero_grad()
        model(batch).backward()
        optimizer.step()
    host = {state[key].data_ptr() for state in optimizer.state.values() for key in HOST if key in state}
    with Waiting(host) as waiting:
        optimizer.step()
    assert bool(waiting.found) == (method in WAITING), waiting.found
