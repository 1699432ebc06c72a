"""What the fused step computes with: the tensors of each layer, and how they lie in the flat list that autograd takes.

Paper: none.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor


class Parts(NamedTuple):
    """One layer's tensors."""

    W: Tensor  # (m, n)
    bias: Tensor | None  # (m,)
    factor: Tensor | None  # (m,)
    B: list[Tensor]  # (m, r_t) each
    A: list[Tensor]  # (r_t, n) each
    scales: tuple[float, ...]


class Plan(NamedTuple):
    """Which tensor of the flat list belongs to which layer. The list is: all W, biases, factors, B's, distinct A's."""

    layers: int
    biased: list[int]  # layers, in the list's order
    factored: list[int]
    owners: list[int]  # the layer of each term
    scales: list[float]  # of each term
    reads: list[int]  # which A each term has
    ranks: list[int]  # of each A
    rate: float

    def cut(self, flat: Sequence[Any]) -> tuple[Sequence[Any], dict[int, Any], dict[int, Any], Any, Any]:
        """W's, layer → bias, layer → factor, B's and A's (or what else is listed in their places)."""
        k, different = self.layers, len(self.ranks)
        start = k + len(self.biased)
        factors = flat[start : start + len(self.factored)]
        bias = dict(zip(self.biased, flat[k:start], strict=True)) if self.biased else {}
        factor = dict(zip(self.factored, factors, strict=True)) if self.factored else {}
        return flat[:k], bias, factor, flat[-different - len(self.owners) : -different], flat[-different:]

    def of_terms(self, rows: Tensor) -> list[Tensor]:
        """The part of z or G (R, T) that each term has."""
        parts = rows.split_with_sizes(self.ranks)
        return [parts[read] for read in self.reads]


def distinct(A: list[Tensor]) -> tuple[list[Tensor], list[int]]:
    """The different A's, and which of them each term has: one that siblings share frozen is multiplied once (VeRA)."""
    place: dict[object, int] = {}
    different: list[Tensor] = []
    reads = []
    for term, each in enumerate(A):
        key = term if each.requires_grad else (each.data_ptr(), each.shape, each.stride(), each.dtype)
        if key not in place:
            place[key] = len(different)
            different.append(each)
        reads.append(place[key])
    return different, reads
