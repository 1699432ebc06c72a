"""One matrix as a quantised matrix, and the best product for what quantisation loses.

    W ≈ Q(W) + B A,    B A = best rank-r approximation of E = W − Q(W) in the metric

Q(W) is the same at every rank and B (m, k), A (k, n) are nested, so what is learned once serves every budget; rank 0
is plain quantisation. Bytes: codes of mn·bits/8, a number for each `block` entries, and r(m+n) numbers; dense (`full`)
holds no codes. Cost: one rounding and one `linalg.weighted_svd`.
Paper: LQER (arXiv 2402.02446) scales E by the inputs' mean sizes, QERA (2410.06040) by C^½; here the metric does.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from eckart.compression.metrics import Metric
from eckart.compression.pieces.matrix_piece import MatrixPiece
from eckart.compression.pieces.piece import Piece, bias_of, working
from eckart.compression.settings import Settings
from eckart.linalg import approximation_error, quantize
from eckart.nn import FactoredLinear, Matrix, Observation
from eckart.nn.quantized_layer import QuantizedLinear
from eckart.nn.summed import SumLinear


class QuantizedPiece(MatrixPiece):
    """One matrix as codes and a product of two factors.

    Args:
        members: The one matrix.
        settings: Its option "block", entries that share a scale.
        metric: In which error the product is best.
        bits: Of a code, 8 or 4.

    Raises:
        ValueError: The option does not fit.
    """

    smallest = 0

    def __init__(self, members: Sequence[Matrix], settings: Settings, metric: Metric, bits: int) -> None:
        super().__init__(members, settings, metric, "factors")
        self.bits, self.block = bits, settings.options["block"]
        if type(self.block) is not int or self.block < 1:
            raise ValueError(f"block: {self.block!r}; give how many entries share a scale, at least 1, such as 64")
        self.form = f"factors+int{self.bits}"

    def learn(self, seen: Mapping[str, Observation]) -> None:
        super().learn(seen)
        W = working(self.matrix)
        C, G = self.covariances(self.matrix, seen)
        none = W.new_zeros(W.shape[0], 1), W.new_zeros(1, W.shape[1])
        whole = approximation_error(W, *none, input_covariance=C, output_covariance=G)
        self.learned["whole"] = whole

    def target(self) -> Tensor:  # (m, n)
        """What quantisation loses, in float32 or float64."""
        W = working(self.matrix)
        return W - self._quantized(None).weight.to(W.dtype)

    def bytes(self, size: int) -> int:
        m, n = self.shape
        if size == self.full:
            return self.dense_bytes
        scales = -(-m * n // self.block) * self.itemsize
        return -(-m * n * self.bits // 8) + scales + size * (m + n) * self.itemsize

    @property
    def energy(self) -> float:
        return float(self.learned["whole"]) ** 2

    def layers(self, B: Tensor, A: Tensor) -> dict[str, nn.Module]:
        bias = bias_of(self.matrix)
        if not B.shape[1]:
            return {self.matrix.name: self._quantized(bias)}
        return {self.matrix.name: SumLinear(FactoredLinear(B, A, bias), self._quantized(None))}

    def _quantized(self, bias: Tensor | None) -> QuantizedLinear:
        W = self.matrix.weight().detach()
        return QuantizedLinear(quantize(W, self.bits, block=self.block), bias, W.dtype)


def with_codes(
    model: nn.Module, found: Sequence[Matrix], settings: Settings, metric: Metric, *, bits: int
) -> list[Piece]:
    """Every matrix alone, as codes and a product; a convolution, whose codes no layer runs, as a product alone."""
    return [
        MatrixPiece([matrix], settings, metric, "factors")
        if matrix.kind == "conv"
        else QuantizedPiece([matrix], settings, metric, bits)
        for matrix in found
    ]
