"""Where a training's memory goes: weights, gradients, optimizer states and workspace, predicted and measured.

Predicted is from shapes and options, before there is any state (see `accounting`); measured is what is there now, each
storage once, so that a view of something larger counts as what it keeps alive. States agree to the byte. Activations
are the model's and the batch's, and are in neither.
Paper: none.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from eckart.optim.budget.accounting import gradient_bytes, state_bytes, workspace_bytes
from eckart.optim.optimizer import LowRankOptimizer
from eckart.optim.sharding import here

UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Bytes:
    """Bytes by what they are for; None where they were not measured."""

    weights: int
    gradients: int
    states: int
    workspace: int | None

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.gradients + self.states + (self.workspace or 0)


@dataclass(frozen=True)
class Memory:
    """What `memory` found out. Printed, it is a table."""

    predicted: Bytes
    measured: Bytes
    between_refreshes: int  # gradients at most, predicted, at a step that is not a refresh

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [("", "predicted", "measured")]
        for each in (*(field.name for field in fields(Bytes)), "total"):
            rows.append((each, in_units(getattr(self.predicted, each)), in_units(getattr(self.measured, each))))
        lines = [f"{name:<11} {left:>10} {right:>10}" for name, left, right in rows]
        if self.between_refreshes != self.predicted.gradients:
            lines.append(f"gradients between refreshes: {in_units(self.between_refreshes)}")
        return "\n".join(lines)


def memory(model: nn.Module, optimizer: LowRankOptimizer, step: Callable[[], object] | None = None) -> Memory:
    """Say what a training takes, in bytes, without its activations.

    Args:
        model: With the weights; "meta" does for the prediction.
        optimizer: Its optimizer, before the first step or at any time.
        step: Called once with allocations followed, to measure the workspace; `optimizer.step` after a backward pass
            (it makes that step).

    Returns:
        Predicted and measured bytes of this process. Measured states are there from the first step on; measured
        gradients are those that are there now, or of `step_in_backward` the most that there were at a time.

    Example:
        >>> model = nn.Linear(1000, 1000, bias=False)
        >>> optimizer = LowRankOptimizer(model, rank=100)
        >>> model(torch.ones(1, 1000)).sum().backward()
        >>> optimizer.step()
        >>> print(memory(model, optimizer))
                     predicted   measured
        weights        4.00 MB    4.00 MB
        gradients      4.00 MB    4.00 MB
        states         1.20 MB    1.20 MB
        workspace      3.60 MB          –
        total         12.80 MB    9.20 MB
    """
    layered = optimizer.in_backward
    passes = 0 if layered is None else layered.accumulate
    predicted = predict(model, optimizer, passes)
    every = [p for group in optimizer.param_groups for p in group["params"]]
    if layered is not None and layered.keeps_norms:
        predicted = replace(predicted, states=predicted.states + 4 * len(every))
    gradients = stored(p.grad for p in every)
    before = _states(optimizer)
    workspace = None if step is None else peak(step)
    kept = _states(optimizer)
    if workspace is not None:
        workspace -= kept - before  # a first step makes the states
    if layered is not None:
        gradients = layered.largest
    measured = Bytes(stored([*model.parameters(), *model.buffers()]), gradients, kept, workspace)
    return Memory(predicted, measured, gradient_bytes(optimizer, passes)[1])


def predict(model: nn.Module, optimizer: LowRankOptimizer, passes: int = 0) -> Bytes:
    """What a training will take, from shapes and options.

    Args:
        model: With the weights.
        optimizer: Its optimizer.
        passes: Backward passes for each step of `step_in_backward`; 0 for ordinary steps.
    """
    weights = sum(here(t).nbytes for t in (*model.parameters(), *model.buffers()))
    states = sum(state_bytes(p, group) for group in optimizer.param_groups for p in group["params"])
    gradients, workspace = gradient_bytes(optimizer, passes)[0], workspace_bytes(optimizer, passes)
    return Bytes(weights, gradients, states, workspace)


def peak(function: Callable[[], object]) -> int:
    """Bytes that a call has allocated at a time, at most, beyond what was there before.

    On the CPU from torch's own allocator, through its profiler, so that nothing else in the process counts.

    Args:
        function: Called once.

    Example:
        >>> round(peak(lambda: torch.ones(1000) + 1), -2)  # two tensors of 4000 bytes, and a number
        8000
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        function()
    now = most = 0
    for event in run.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def _states(optimizer: LowRankOptimizer) -> int:
    return stored(value for state in optimizer.state.values() for value in state.values())


def stored(tensors: Iterable[Any]) -> int:
    """Bytes of the storages that tensors keep alive, each once; of this process."""
    storages = [here(t).untyped_storage() for t in tensors if isinstance(t, Tensor) and not t.is_meta]
    return sum({each.data_ptr(): each.nbytes() for each in storages if each.nbytes()}.values())


def in_units(count: int | None) -> str:
    """Bytes to read; powers of 1000.

    Example:
        >>> in_units(1_234_000_000), in_units(12), in_units(None)
        ('1.23 GB', '12 B', '–')
    """
    if count is None:
        return "–"
    power = min(max(len(str(abs(int(count)))) - 1, 0) // 3, len(UNITS) - 1)
    return f"{count / 1000**power:.2f} {UNITS[power]}" if power else f"{int(count)} B"
