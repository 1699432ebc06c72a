"""Matrices that read inputs of one width share one basis: Basis Sharing.

    W_i ≈ B_i A,    i = 1 … p,    W_i (m_i, n), B_i (m_i, r), A (r, n)

are the best rank-r product of the stack [W_1; …; W_p] (Σm, n) in the mean C of the matrices' input covariances: for
siblings that read the very same input (q, k, v; gate, up), and for the same kind of matrix in neighbouring layers. They
take r(Σm + n) numbers, where products of their own take r(Σm + pn). Where the inputs differ, each B_i is then fitted
to its own C_i: B_i = W_i C_i Aᵀ (A C_i Aᵀ)⁻¹. The spectrum is the stack's, so the error that it tells is that of the
mean metric.

The layers are `FactoredLinear`s whose A is one and the same parameter. Cost: one `linalg.weighted_svd` of
(Σm, n), and for each size and each matrix with an input of its own a system of r equations.
Paper: Basis Sharing (arXiv 2410.03765) whitens with a Cholesky factor of ΣC_i; we invert nothing, and fit B_i to C_i.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from eckart.compression.metrics import Metric
from eckart.compression.pieces.piece import Piece, bias_of, working
from eckart.compression.pieces.storages import stored_bytes
from eckart.compression.settings import Settings
from eckart.linalg import solve_gram, weighted_svd
from eckart.nn import FactoredLinear, Matrix, Observation


class BasisPiece(Piece):
    """Several matrices as products with one basis.

    Args:
        members: Two or more matrices of linear layers, with inputs of one width.
        settings: See `Settings`.
        metric: In which error the basis is best.

    Raises:
        ValueError: The widths differ.
    """

    form = "shared"

    def __init__(self, members: Sequence[Matrix], settings: Settings, metric: Metric) -> None:
        super().__init__(members, settings, metric)
        widths = {matrix.shape[1] for matrix in members}
        if len(widths) != 1:
            raise ValueError(f"members: {self.label} read inputs of widths {sorted(widths)}; one basis needs one width")

    @property
    def shape(self) -> tuple[int, int]:
        """(Σm, n)."""
        shapes = [matrix.shape for matrix in self.members.values()]
        return sum(m for m, _ in shapes), shapes[0][1]

    def learn(self, seen: Mapping[str, Observation]) -> None:
        pairs = [self.covariances(matrix, seen) for matrix in self.members.values()]
        weights = [working(matrix) for matrix in self.members.values()]
        own = [C for C, _ in pairs if C is not None]
        C = torch.stack(own).mean(0) if own else None
        outputs = [G for _, G in pairs if G is not None]
        G = torch.block_diag(*outputs) if len(outputs) == len(pairs) else None
        W = torch.cat(weights)
        B, S, A = weighted_svd(W, self.full, input_covariance=C, output_covariance=G)
        self.learned = {"B": B, "A": A, "spectrum": S}
        if C is not None and any(each is not None and not torch.equal(each, own[0]) for each, _ in pairs):
            for index, (weight, (each, _)) in enumerate(zip(weights, pairs, strict=True)):
                if each is not None:
                    self.learned |= _fit(index, weight, each, A)

    def bytes(self, size: int) -> int:
        return stored_bytes("factors", size, self.shape, self.itemsize)

    def build(self, size: int) -> dict[str, nn.Module]:
        if size == self.full:
            return {}
        layers: dict[str, nn.Module] = {}
        basis = None
        start = 0
        for index, (name, matrix) in enumerate(self.members.items()):
            stop = start + matrix.shape[0]
            B = self._coefficients(index, slice(start, stop), size)
            dtype = matrix.weight().dtype
            layer = FactoredLinear(B.to(dtype), self.learned["A"][:size].to(dtype), bias_of(matrix))
            basis = layer.A if basis is None else basis
            layer.A = basis
            layers[name], start = layer, stop
        return layers

    def _coefficients(self, index: int, rows: slice, size: int) -> Tensor:  # (m, r)
        """B_i at a size."""
        gram = self.learned.get(f"gram.{index}")
        if gram is None:
            return self.learned["B"][rows, :size]
        cross = self.learned[f"cross.{index}"]
        return solve_gram(gram[:size, :size], cross[:, :size].mT).mT


def _fit(index: int, W: Tensor, C: Tensor, A: Tensor) -> dict[str, Tensor]:
    """The system for B_i: A C_i Aᵀ (k, k) and W_i C_i Aᵀ (m, k), in float64: small values of A C Aᵀ are squares."""
    V = C.double() @ A.double().mT
    return {f"gram.{index}": A.double() @ V, f"cross.{index}": W.double() @ V}
