"""One matrix within one step: what the rules read and write."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eckart.optim.sharding import Shards
from eckart.optim.step.view import as_matrix_shape


@dataclass
class Slot:
    """A matrix, its state and what a step has found out so far.

    X is (p, q), V is (q, r), R = X V is (p, r), or batches of them. All are of this process: where rows of X are shared
    out, sums over p go through `shards`.
    """

    parameter: Tensor
    name: str
    state: dict[str, Any]
    group: dict[str, Any]
    shards: Shards
    index: int  # among all parameters of the optimizer; with the seed it says which random numbers are drawn
    rank: int
    left: bool
    X: Tensor = field(repr=False)  # the gradient in float32 (float64 for float64); written to only where it is a sum
    V: Tensor = field(repr=False)  # what R is made with; a (r,) tensor of integers picks columns
    R: Tensor = field(repr=False)
    peak: Tensor | None = None  # (..., 1, 1): the largest magnitude in X over all processes; where a basis is due
    own: Tensor | None = None  # D: what the inner rule makes of R
    rows: Tensor | None = None  # (p, 1) or scalar: what multiplies X itself
    outside: bool = False  # whether rows are for X − R Vᵀ only: L = −rows ∘ R
    extra: Tensor | None = None  # (p, q): anything else
    square: Tensor | None = None  # () or (E,): ‖rows ∘ X‖² over all processes, where that is all of the update
    given: Tensor | None = None  # R where it is known before: a sum over micro-batches; X is their last one then
    seen: dict[str, Any] | None = None  # what `telemetry` reads; None where nobody asked
    moments: dict[str, Tensor] = field(default_factory=dict, repr=False)  # as they were, while the basis is renewed

    def get(self, key: str) -> Tensor:
        """A state's part on this process."""
        return self.shards.here(self.state[key])

    @property
    def step(self) -> int:
        """Steps so far, this one included."""
        return int(self.state["step"])

    @property
    def shape(self) -> tuple[int, int]:  # (m, n)
        """Of one matrix as the parameter holds it, on all processes together."""
        m, n = as_matrix_shape(self.parameter.shape, self.group["stack"])[-2:]
        return m, n

    def factor(self) -> Tensor | None:  # (p, r)
        """All of the update that goes through Vᵀ."""
        if self.own is None or self.rows is None or not self.outside:
            return self.own
        return torch.addcmul(self.own, self.rows, self.R, value=-1)

    def gathered(self) -> Tensor:  # (..., p, q)
        """X with the rows of all processes."""
        return self.shards.gather(self.X)

    def generator(self, when: int | None = None, purpose: int = 0) -> torch.Generator:
        """Random numbers of this matrix: the same in each process, and again after a resume.

        Args:
            when: At which step; None is that of the last refresh.
            purpose: What they are for.
        """
        when = int(self.state["basis_step"]) if when is None else when
        return generator(self.X.device, self.group["seed"], self.index, when, purpose)

    def noise(self) -> Tensor:  # (..., q, r)
        """Gaussian numbers of the basis's shape: the same however the parameter is shared out."""
        members = (self.parameter.shape[0],) if self.X.ndim == 3 else ()
        shape = *members, self.X.shape[-1], self.rank
        drawn = torch.randn(shape, generator=self.generator(), device=self.X.device, dtype=self.X.dtype)
        return self.shards.members(drawn)


def generator(device: torch.device, *parts: int) -> torch.Generator:
    """A source of random numbers that hangs on all of some numbers."""
    mixed = 0
    for part in parts:
        mixed = (mixed * 6364136223846793005 + part + 1442695040888963407) % (1 << 63)
    return torch.Generator(device).manual_seed(mixed)
