"""One measured spectrum: the singular values of one matrix, all of them or the largest ones and the exact energy."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Entry:
    """The spectrum of one matrix.

    Attributes:
        name: The matrix's name, as `eckart.nn.matrices` gives it.
        of: What was measured: "weights", "updates", "gradients", "activations" or "optimizer".
        shape: (m, n). For activations m counts tokens and n is the width.
        values: Singular values σ, descending, float64: all min(m, n), or the largest ones (`fast`).
        energy: ‖W‖_F² = Σσ² over *all* singular values.
        extra: What else was measured, by column name (tokens, overlap_left, ...).
    """

    name: str
    of: str
    shape: tuple[int, int]
    values: Tensor  # (p,) or (k,) float64
    energy: float
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """The number of singular values that the matrix has, min(m, n)."""
        return min(self.shape)

    @property
    def complete(self) -> bool:
        """Whether every singular value is known."""
        return len(self.values) == self.count


def complete_entry(
    name: str,
    of: str,
    shape: tuple[int, int],
    values: Tensor,  # (min(m, n),)
    extra: dict[str, Any] | None = None,
) -> Entry:
    """An entry whose singular values are all known, so that their energy is too."""
    values = values.detach().to("cpu", torch.float64)
    return Entry(name, of, shape, values, float(values.square().sum()), extra or {})
