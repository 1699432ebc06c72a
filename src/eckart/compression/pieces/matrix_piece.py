"""One matrix, as the best product of every rank in its metric; with a remainder that is quantised, or none.

    W ≈ B A + R,    B A = best rank-r approximation of W − R in the metric,    R = 0 or a quantised W

B (m, k), A (k, n), k = min(m, n), are nested: their first r columns and rows are the answer at rank r, so what is
learned once serves every budget. Cost: one `linalg.weighted_approximation`.
Paper: SVD-LLM (arXiv 2403.07378) for R = 0; LQER and QERA (arXiv 2402.02446, 2410.06040) for a quantised R.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from eckart.compression.metrics import Metric
from eckart.compression.pieces.piece import Piece
from eckart.compression.pieces.storages import stored_bytes, stored_layer
from eckart.compression.settings import Settings
from eckart.linalg import shrink, weighted_approximation
from eckart.nn import Matrix, Observation
from eckart.nn.crossing import Crossed

UNSEEN = Observation("", tokens=0)


class MatrixPiece(Piece):
    """One matrix as a product of two factors.

    Args:
        members: The one matrix.
        settings: See `Settings`.
        metric: In which error the product is best.
        storage: "factors" or "pivoted".
    """

    def __init__(self, members: Sequence[Matrix], settings: Settings, metric: Metric, storage: str) -> None:
        super().__init__(members, settings)
        (self.matrix,) = members
        self.metric = metric
        self.form = self.cost = storage

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape

    @property
    def fixed_bytes(self) -> int:
        return self.bytes(0)

    def learn(self, seen: Mapping[str, Observation]) -> None:
        C, G = self.metric.pair(seen.get(self.matrix.name, UNSEEN), self.settings)
        self.learned = _decomposed(self.target(), C, G)

    def target(self) -> Tensor:  # (m, n)
        """What the product stands for."""
        return self.matrix.weight().detach()

    def refit(self, crossed: Crossed, size: int) -> dict[str, Tensor]:
        """B and A at a rank, fitted to give the dense outputs from the inputs of a prefix that has changed."""
        alpha = self.settings.shrink
        C = shrink(crossed.covariance, alpha)
        M = (1 - alpha) * (crossed.cross - crossed.covariance) + C
        W = self.target()
        B, A = weighted_approximation(W.float() if W.dtype.itemsize < 4 else W, size, input_covariance=C, cross=M)
        return {"B": B.to(W.dtype), "A": A.to(W.dtype)}

    def bytes(self, size: int) -> int:
        return stored_bytes(self.cost, size, self.shape, self.itemsize)

    def build(self, size: int) -> dict[str, nn.Module]:
        if size == self.full:
            return {}
        return self.layers(self.learned["B"][:, :size], self.learned["A"][:size])

    def layers(self, B: Tensor, A: Tensor) -> dict[str, nn.Module]:
        """The layer that stands in the matrix's place."""
        bias = getattr(self.matrix.module, "bias", None)
        return {self.matrix.name: stored_layer(self.cost, self.matrix, B, A, bias)}


def _decomposed(W: Tensor, C: Tensor | None, G: Tensor | None) -> dict[str, Tensor]:
    """B, A of full rank in W's dtype, and the singular values in the metric."""
    B, A = weighted_approximation(
        W.float() if W.dtype.itemsize < 4 else W, min(W.shape), input_covariance=C, output_covariance=G
    )
    energies = _energy(A.mT, C) * _energy(B, G)  # of orthogonal directions: σ_i² is the product of both sides
    spectrum = energies.clamp_min(0).sqrt().cummin(0).values
    return {"B": B.to(W.dtype), "A": A.to(W.dtype), "spectrum": spectrum}


def _energy(F: Tensor, C: Tensor | None) -> Tensor:  # (n, k), (n, n) -> (k,) float64
    """f_iᵀ C f_i of each column."""
    F = F.double()
    return ((F if C is None else C.double() @ F) * F).sum(0)
