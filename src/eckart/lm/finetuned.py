"""What fine-tuning did: how well the text is predicted before and after, and the spectra of what was learned.

    Δ = U S Vᵀ of each matrix, from its factors;   rank at 99 % = min k with σ₁² + … + σ_k² ≥ 0.99 ‖Δ‖²

Ranks beyond that could be truncated: the adapter would be smaller, and nearly the same.
Paper: none.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from eckart.adapters import Adaptation
from eckart.adapters.adapter import Adapter
from eckart.adapters.factored.algebra import factors
from eckart.adapters.layers.place import Place, places
from eckart.linalg import effective_rank, energy_rank, product_sum, product_svd, singular_values

SHOWN = 64  # singular values kept of each matrix


@dataclass(frozen=True)
class Learned:
    """What was learned for one matrix; of a stack of matrices, the one with the highest rank.

    Args:
        name: The matrix.
        shape: (m, n).
        rank: r of the adapter.
        effective_rank: exp of the entropy of σ²/Σσ².
        rank_90: Rank that holds 90 % of ‖Δ‖².
        rank_99: Rank that holds 99 % of it.
        relative: ‖Δ‖ / ‖W‖.
        values: Singular values of Δ, the leading 64.
    """

    name: str
    shape: tuple[int, int]
    rank: int
    effective_rank: float
    rank_90: int
    rank_99: int
    relative: float
    values: list[float]


@dataclass(frozen=True)
class Finetuned:
    """What `finetune` did.

    Args:
        adaptation: What was adapted, and how many parameters trained.
        steps: Optimizer steps of the whole run.
        before: Perplexity of what counts in the held-out data before training (of the training data where none was
            held out).
        after: The same after it.
        measured_on: How many tokens these are of, and of which data.
        learned: One entry for each matrix.
        losses: [step, mean training loss] of each step.
        evaluations: [step, perplexity] during training.
        seconds: Training alone, of this call.
        memory: Peak bytes: of the GPU's memory, or of the process where there is no GPU.
        folder: Where the adapter lies.
        notes: What was cut, left out or fell back, in sentences.
    """

    adaptation: Adaptation
    steps: int
    before: float
    after: float
    measured_on: str
    learned: list[Learned]
    losses: list[tuple[int, float]]
    evaluations: list[tuple[int, float]]
    seconds: float
    memory: int
    folder: str
    notes: list[str] = field(default_factory=list)

    def ranks(self) -> dict[str, int]:
        """Matrix name → the rank that holds 99 % of what was learned, at least 1: what the adapter can be cut to."""
        return {each.name: max(1, each.rank_99) for each in self.learned}

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"ranks": self.ranks(), "summary": str(self)}

    def __str__(self) -> str:
        used = sorted(each.rank_99 for each in self.learned)
        given = sorted(each.rank for each in self.learned)
        middle = len(used) // 2
        return (
            f"perplexity {self.before:.2f} → {self.after:.2f} on {self.measured_on}; {self.steps} steps in "
            f"{self.seconds:.0f} s; of rank {given[middle]} a median of {used[middle]} hold 99 % of what was learned"
        )


def spectra(model: nn.Module, name: str) -> list[Learned]:
    """The spectra of an adapter's changes.

    Args:
        model: A model with adapters.
        name: The adapter.

    Returns:
        One entry for each adapted matrix, in the model's order. A trained magnitude (DoRA) is no part of Δ.

    Example:
        >>> from eckart.adapters import adapt
        >>> model = nn.Sequential(nn.Linear(6, 4))
        >>> _ = adapt(model, rank=2)
        >>> spectra(model, "default")[0].rank_99  # nothing is learned yet
        0
    """
    return [_learned(matrix, place, place.adapters[name]) for matrix, place in places(model, name).items()]


@torch.no_grad()
def _learned(matrix: str, place: Place, adapter: Any) -> Learned:
    return learned(matrix, adapter.shape, adapter.rank, _values(adapter), place.weight_matrix())


def learned(name: str, shape: Sequence[int], rank: int, values: Tensor, W: Tensor) -> Learned:
    """An entry from the singular values of Δ, (..., k), and the matrix that was changed."""
    S = values if values.ndim == 1 else values[energy_rank(values).argmax()]
    base = torch.linalg.vector_norm(W.float()).item()
    return Learned(
        name,
        (shape[0], shape[1]),
        rank,
        float(effective_rank(S)) if S.any() else 0.0,
        int(energy_rank(S, 0.9)),
        int(energy_rank(S, 0.99)),
        torch.linalg.vector_norm(values).item() / base if base else 0.0,
        [float(each) for each in S[:SHOWN]],
    )


def _values(adapter: Adapter) -> Tensor:  # (..., k)
    """The singular values of Δ, from its factors where it has thin ones."""
    terms = adapter.terms()
    if terms is None:
        return singular_values(adapter.delta().float()).cpu()
    return product_svd(*product_sum([factors(term) for term in terms]))[1].cpu()
