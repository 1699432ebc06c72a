"""What training with low-rank states did: perplexity, memory beside AdamW's, and the spectra of W − W₀.

    Δ = W − W₀ of each matrix that was trained in a subspace: its singular values, all of them

A basis that is renewed lets Δ have more than r directions; how many it has is what `learned` says.
Paper: none.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eckart.linalg import map_side_by_side, singular_values
from eckart.lm.finetuned import Learned, learned
from eckart.nn import Progress
from eckart.nn.files import open_checkpoint, save_safetensors
from eckart.optim import LowRankOptimizer, memory
from eckart.optim.budget.measuring import in_units
from eckart.optim.checking import in_subspace
from eckart.optim.step.view import rank_of


class Taken(NamedTuple):
    """What a run took, in bytes of one process.

    Args:
        weights: Of parameters and buffers (`optim.memory`).
        states: What the optimizer keeps between steps (the same).
        adamw: What torch's AdamW would keep: two moments of each trained parameter, in its type.
        peak: Largest in use while training, activations included: of the GPU's memory, or of the process where there is
            no GPU.
    """

    weights: int
    states: int
    adamw: int
    peak: int

    def __str__(self) -> str:
        return (
            f"weights {in_units(self.weights)}, optimizer states {in_units(self.states)} (AdamW's: "
            f"{in_units(self.adamw)}), {in_units(self.peak)} at the peak"
        )


@dataclass(frozen=True)
class Trained:
    """What `train` did.

    Args:
        method: The optimizer's.
        ranks: Matrix → r of its subspace.
        parameters: How many numbers train.
        steps: Optimizer steps of the whole run.
        before: Perplexity of what counts in the held-out data before training (of the training data where none was
            held out).
        after: The same after it.
        measured_on: How many tokens these are of, and of which data.
        learned: One entry for each matrix of `ranks`.
        losses: [step, mean training loss] of each step.
        evaluations: [step, perplexity] during training.
        telemetry: Matrix → what the optimizer says of it: captured energy, refreshes, ….
        seconds: Training alone, of this call.
        step_seconds: Median of a step of this call: batches, gradients and the optimizer.
        memory: Of this process.
        folder: Where the model lies.
        notes: What was cut, left out or fell back, in sentences.
    """

    method: str
    ranks: dict[str, int]
    parameters: int
    steps: int
    before: float
    after: float
    measured_on: str
    learned: list[Learned]
    losses: list[tuple[int, float]]
    evaluations: list[tuple[int, float]]
    telemetry: dict[str, dict[str, float]]
    seconds: float
    step_seconds: float
    memory: Taken
    folder: str
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"memory": self.memory._asdict(), "summary": str(self)}

    def __str__(self) -> str:
        return (
            f"perplexity {self.before:.2f} → {self.after:.2f} on {self.measured_on}; {self.steps} steps of "
            f"{self.step_seconds:.2f} s; {self.memory}"
        )


def taken(model: torch.nn.Module, optimizer: LowRankOptimizer, peak: int) -> Taken:
    """Count what a model and its optimizer hold.

    Example:
        >>> model = torch.nn.Linear(64, 32, bias=False)
        >>> optimizer = LowRankOptimizer(model, rank=4)
        >>> model(torch.ones(1, 64)).sum().backward()
        >>> optimizer.step()
        >>> taken(model, optimizer, peak=0)[:3]  # 4 (32 + 2 · 64) numbers and four counters; 2 · 32 · 64 numbers
        (8192, 2592, 16384)
    """
    now = memory(model, optimizer).measured
    trained = sum(p.nbytes for group in optimizer.param_groups for p in group["params"])
    return Taken(now.weights, now.states, 2 * trained, peak)


def projected(optimizer: LowRankOptimizer) -> dict[str, tuple[Tensor, int]]:
    """Name → (parameter, r) of what is trained in a subspace."""
    return {
        name: (p, rank_of(group["rank"], p.shape, group["stack"]))
        for group in optimizer.param_groups
        for name, p in zip(group["param_names"], group["params"], strict=True)
        if in_subspace(p, group)
    }


def keep_start(model: torch.nn.Module, file: Path) -> None:
    """Write a model's parameters as they are now, to compare with later; no copy of them is made in memory."""
    save_safetensors(file, dict(model.named_parameters()), force=True)


@torch.no_grad()
def spectra_since(optimizer: LowRankOptimizer, file: Path, progress: Progress | None = None) -> list[Learned]:
    """The spectra of what has changed since `keep_start`, in the optimizer's order.

    Args:
        optimizer: Whose parameters have names.
        file: What `keep_start` wrote.
        progress: Called as progress(done, total, label).
    """
    start, matrices = open_checkpoint(file), projected(optimizer)

    def values(name: str) -> Tensor:
        p = matrices[name][0].detach()
        change = p.float() - start.read(name).to(p.device).float()
        return singular_values(change if p.ndim == 3 else change.flatten(1)).cpu()

    def entries() -> Iterator[Learned]:
        for done, (name, S) in enumerate(zip(matrices, map_side_by_side(values, matrices), strict=True), 1):
            p, rank = matrices[name]
            shape = p.shape[-2:] if p.ndim == 3 else p.flatten(1).shape
            if progress is not None:
                progress(done, len(matrices), "what was learned")
            yield learned(name.removesuffix(".weight"), shape, rank, S, p)

    return list(entries())


def ranks_of(optimizer: LowRankOptimizer) -> dict[str, int]:
    """Matrix → r."""
    return {name.removesuffix(".weight"): rank for name, (_, rank) in projected(optimizer).items()}
