"""What a start may look at, and the contract that all of them share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eckart.nn import Matrix, Observation


@dataclass(frozen=True)
class Look:
    """What there is to look at when an adapter of one matrix starts.

    Args:
        matrix: The matrix; `weight()` gives its values, (m, n).
        seen: What one observed pass told of it; None where the method asks for none.
        generator: Source of random numbers, on the CPU.
    """

    matrix: Matrix
    seen: Observation | None
    generator: torch.Generator
    options: dict[str, Any] = field(default_factory=dict)

    def weight(self) -> Tensor:  # (m, n), or (stack, m, n)
        """The frozen weight, detached."""
        return self.matrix.weight().detach()


Start = Callable[[Any, Look], None]
"""(adapter of a shape that it knows, Look) → None: fills the parameters in place, under no_grad. After it Δ = 0: a
start with B·A ≠ 0 ends with `adapter.freeze(-1.0)`, which takes itself out."""
