"""One measured spectrum: the singular values of one matrix, all of them or the largest ones and the exact energy."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Entry:
    """The spectrum of one matrix.

    Attributes:
        name: The matrix's name, as `eckart.nn.matrices` gives it.
        of: What was measured: "weights", "updates", "gradients", "activations" or "optimizer".
        shape: (m, n). For activations m counts tokens and n is the width.
        values: Singular values σ, descending, float64: all min(m, n), or the largest ones (`fast`).
        energy: ‖W‖_F² = Σσ² over *all* singular values.
        rounding: The largest σ that rounding in the matrix's own number format could have made; see `rounding_of`.
        extra: What else was measured, by column name (tokens, overlap_left, ...).
    """

    name: str
    of: str
    shape: tuple[int, int]
    values: Tensor  # (p,) or (k,) float64
    energy: float
    rounding: float
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """The number of singular values that the matrix has, min(m, n)."""
        return min(self.shape)

    @property
    def complete(self) -> bool:
        """Whether every singular value is known."""
        return len(self.values) == self.count

    @property
    def relative_rounding(self) -> float:
        """`rounding` as the ε for which `rounding` = σ₁·max(m, n)·ε, as numerical ranks are defined."""
        spectral = float(self.values[0])
        return self.rounding / (spectral * max(self.shape)) if spectral else 0.0


def complete_entry(
    name: str,
    of: str,
    shape: tuple[int, int],
    values: Tensor,  # (min(m, n),)
    rounding: float,
    extra: dict[str, Any] | None = None,
) -> Entry:
    """An entry whose singular values are all known, so that their energy is too."""
    values = values.detach().to("cpu", torch.float64)
    return Entry(name, of, shape, values, float(values.square().sum()), rounding, extra or {})


def rounding_of(norm: float, shape: tuple[int, int], dtype: torch.dtype) -> float:
    """The largest singular value of the rounding of a matrix of Frobenius norm `norm`, stored in `dtype`.

    Each entry is off by at most ε/2 of itself, independently: noise of size ε/2·‖W‖_F/√(mn), whose largest singular
    value is that times √m + √n.

    Example:
        >>> rounding_of(2.0, (1, 1), torch.bfloat16)
        0.015625
    """
    m, n = shape
    return torch.finfo(dtype).eps / 2 * norm * (m**-0.5 + n**-0.5)
