"""Which matrix of a model a tensor is, told by its place in memory."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eckart.nn.matrices import Matrix


class Weights:
    """The observed weights by their place in memory.

    Args:
        matrices: each a plain parameter that stays where it is.

    Example:
        >>> from eckart.nn.matrices import matrices
        >>> model = nn.Linear(3, 2)
        >>> weights = Weights(matrices(model))
        >>> weights.find(model.weight.T.mT)[0].name, weights.find(model.weight[:1]), weights.notes
        ('weight', None, {'weight': 'is multiplied in parts, or transposed'})
    """

    def __init__(self, matrices: Sequence[Matrix]) -> None:
        self._places: dict[int, list[tuple[Matrix, Tensor]]] = {}
        self.notes: dict[str, str] = {}  # name -> why a product with the weight was not counted
        for matrix in matrices:
            W = getattr(matrix.module, matrix.parameter).detach()
            W = W if matrix.kind == "conv" else matrix.as_matrix(W)
            self._places.setdefault(W.untyped_storage().data_ptr(), []).append((matrix, W))

    def find(self, V: Tensor) -> tuple[Matrix, slice] | None:  # (m, n) or (stack, m, n), or as a convolution stores it
        """The matrix whose weight V is, and which of its stack; None (and a note) for other views of the weight."""
        if type(V) not in (Tensor, nn.Parameter) or V.is_meta or V.layout != torch.strided:
            return None
        for matrix, W in self._places.get(V.untyped_storage().data_ptr(), ()):
            first = V.storage_offset() - W.storage_offset()
            if _same(V, W) and first == 0:
                return matrix, slice(0, matrix.stack)
            if matrix.kind == "experts" and _same(V, W[0]) and first in range(0, W.numel(), W.stride(0)):
                return matrix, slice(first // W.stride(0), first // W.stride(0) + 1)
            if 0 <= first < W.numel():
                self.notes[matrix.name] = "is multiplied in parts, or transposed"
        return None


def _same(V: Tensor, W: Tensor) -> bool:
    """Same shape and layout; the stride of a dimension of size one says nothing."""
    if V.shape != W.shape:
        return False
    return all(size == 1 or a == b for size, a, b in zip(V.shape, V.stride(), W.stride(), strict=True))
