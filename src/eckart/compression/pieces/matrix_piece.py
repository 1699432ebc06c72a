"""One matrix, as the best product of every rank in its metric; with a remainder that is quantised, or none.

    W ≈ B A + R,    B A = best rank-r approximation of W − R in the metric,    R = 0 or a quantised W

B (m, k), A (k, n), k = min(m, n), are nested: their first r columns and rows are the answer at rank r, so what is
learned once serves every budget. Cost: one `linalg.weighted_svd`.
Paper: SVD-LLM (arXiv 2403.07378) for R = 0; LQER and QERA (arXiv 2402.02446, 2410.06040) for a quantised R.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from eckart.compression.metrics import Metric
from eckart.compression.pieces.piece import Piece, bias_of, working
from eckart.compression.pieces.storages import stored_bytes, stored_layer
from eckart.compression.settings import Settings
from eckart.linalg import anchored_target, shrink, weighted_approximation, weighted_svd
from eckart.nn import Matrix, Observation
from eckart.nn.crossing import Crossed


class MatrixPiece(Piece):
    """One matrix as a product of two factors.

    Args:
        members: The one matrix.
        settings: See `Settings`.
        metric: In which error the product is best.
        storage: "factors" or "pivoted".
    """

    def __init__(self, members: Sequence[Matrix], settings: Settings, metric: Metric, storage: str) -> None:
        super().__init__(members, settings, metric)
        (self.matrix,) = members
        self.form = self.storage = storage

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape

    def learn(self, seen: Mapping[str, Observation]) -> None:
        C, G = self.covariances(self.matrix, seen)
        B, S, A = weighted_svd(self.target(), min(self.shape), input_covariance=C, output_covariance=G)
        self.learned = self._stored(B, A) | {"spectrum": S}

    def target(self) -> Tensor:  # (m, n)
        """What the product stands for, W − R, in float32 or float64."""
        return working(self.matrix)

    def refit(self, crossed: Crossed, size: int) -> dict[str, Tensor]:
        """B and A at a rank, fitted to give the dense outputs from the inputs of a prefix that has changed."""
        alpha = self.settings.shrink
        C = shrink(crossed.covariance, alpha)
        M = (1 - alpha) * (crossed.cross - crossed.covariance) + C
        W = working(self.matrix)
        T = anchored_target(W, C, M) - (W - self.target())
        B, A = weighted_approximation(T, size, input_covariance=C) if size else (W[:, :0], W[:0])
        return self._stored(B, A)

    def bytes(self, size: int) -> int:
        return stored_bytes(self.storage, size, self.shape, self.itemsize)

    def build(self, size: int) -> dict[str, nn.Module]:
        if size == self.full:
            return {}
        return self.layers(self.learned["B"][:, :size], self.learned["A"][:size])

    def layers(self, B: Tensor, A: Tensor) -> dict[str, nn.Module]:
        """The layer that stands in the matrix's place."""
        return {self.matrix.name: stored_layer(self.storage, self.matrix, B, A, bias_of(self.matrix))}

    def _stored(self, B: Tensor, A: Tensor) -> dict[str, Tensor]:  # (m, r), (r, n)
        """The factors in the dtype of the matrix."""
        dtype = self.matrix.weight().dtype
        return {"B": B.to(dtype), "A": A.to(dtype)}
