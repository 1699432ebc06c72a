"""What a start may look at, and the contract that all of them share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eckart.linalg import working_dtype
from eckart.nn import Matrix, Observation, Progress


@dataclass(frozen=True)
class Look:
    """What there is to look at when an adapter of one matrix starts.

    Args:
        matrix: The matrix; `weight()` gives its values, (m, n).
        seen: What one observed pass told of it; None where the method asks for none.
        generator: Source of random numbers, on the CPU, of this matrix alone.
        options: What the method alone knows.
        given: What the method's `prepare` made for this matrix.
    """

    matrix: Matrix
    seen: Observation | None
    generator: torch.Generator
    options: Mapping[str, Any] = field(default_factory=dict)
    given: Any = None

    def weight(self) -> Tensor:  # (m, n), or (stack, m, n)
        """The frozen weight, detached."""
        return self.matrix.weight().detach()

    def exact_weight(self) -> Tensor:  # (m, n), or (stack, m, n)
        """The frozen weight in at least float32: starts calculate in that, whatever the base is kept in."""
        W = self.weight()
        return W.to(working_dtype(W.dtype))

    def observed(self, name: str) -> Tensor:
        """A field of what was seen.

        Raises:
            ValueError: The batches did not show it for this matrix.
        """
        value = None if self.seen is None else getattr(self.seen, name)
        if value is None:
            raise not_seen(self.matrix, name)
        return value


@dataclass(frozen=True)
class LookAtAll:
    """What there is to look at before the adapters of one `adapt` start.

    Args:
        matrices: All that are adapted.
        seen: Matrix name → what one observed pass told of it.
        ranks: Matrix name → rank.
        free: Whether the ranks may be shared out anew: the caller gave one number.
        options: What the method alone knows.
        progress: Called as progress(done, total, label).
    """

    matrices: list[Matrix]
    seen: Mapping[str, Observation]
    ranks: Mapping[str, int]
    free: bool
    options: Mapping[str, Any]
    progress: Progress | None = None


class Prepared(NamedTuple):
    """What is decided and computed for one matrix before its adapter starts."""

    rank: int  # 0: it is not adapted
    given: Any = None  # becomes `Look.given`
    evidence: Any = None  # kept in the settings


Start = Callable[[Any, Look], None]
"""(adapter of a shape that it knows, Look) → None: fills the parameters in place, under no_grad; called from several
threads at once for different matrices. After it Δ = 0: a start with B·A ≠ 0 ends with `adapter.freeze(-1.0)`, which
takes itself out. A method whose start is meant to change the model says so (`Method.moves`)."""

Prepare = Callable[[LookAtAll], dict[str, Prepared]]
"""What all matrices have in common is computed here once: matrix name → Prepared."""


def not_seen(matrix: Matrix, name: str) -> ValueError:
    """The error for a matrix of which the batches did not show what a start needs."""
    what = name.replace("_", " ")
    why = "it reads ids" if matrix.kind == "embedding" and name != "gradient" else "the batches do not use it so"
    return ValueError(
        f"targets: the start of this method needs the {what} of {matrix.name}, of which there is none ({why}); "
        f"leave it out with exclude={matrix.name!r}"
    )
