"""Pieces whose bytes and spectra are given, for tests of what chooses between them; no model, nothing to learn."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from eckart.compression.pieces.piece import Piece
from eckart.linalg import rank_cost
from eckart.nn import Observation


class ToyPiece(Piece):
    """A matrix (m, n) of this spectrum; `fixed` bytes come to every size below full."""

    def __init__(
        self,
        name: str,
        shape: tuple[int, int],
        spectrum: Sequence[float] | Tensor,
        *,
        cost: str = "factors",
        itemsize: int = 4,
        fixed: int = 0,
    ) -> None:
        self.name, self.matrix_shape, self.number = name, shape, itemsize
        self.cost, self.fixed = cost, fixed
        self.learned = {"spectrum": torch.as_tensor(spectrum, dtype=torch.float64)}

    members = property(lambda self: {})
    names = property(lambda self: (self.name,))
    label = property(lambda self: self.name)
    shape = property(lambda self: self.matrix_shape)
    itemsize = property(lambda self: self.number)
    dense_bytes = property(lambda self: self.shape[0] * self.shape[1] * self.itemsize)

    def learn(self, seen: Mapping[str, Observation]) -> None:
        raise AssertionError("a toy has nothing to learn")

    def bytes(self, size: int) -> int:
        numbers = rank_cost(size, self.shape, cost=self.cost) * self.itemsize
        return numbers + (self.fixed if size < self.full else 0)

    def build(self, size: int) -> dict[str, nn.Module]:
        raise AssertionError("a toy cannot be built")


def no_trial(sizes: Mapping[str, int]) -> float:
    """For allocations that must not run the model."""
    raise AssertionError("this allocation runs no model")


def lost(pieces: Sequence[Piece], sizes: Mapping[str, int]) -> float:
    """The squared error that sizes leave in all pieces."""
    return sum(
        float(piece.spectrum[sizes[piece.label] :].square().sum()) if sizes[piece.label] < piece.full else 0.0
        for piece in pieces
    )
