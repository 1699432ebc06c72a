"""One matrix as a product and a sparse matrix: what is large and scattered apart from what is spread and of low rank.

    W ≈ B A + S,    in turns:  L = [(W − S) D]_r D⁻¹,   S = the `count` entries of each row largest in |W − L| D

D = C^½'s diagonal, the sizes of what is read; each turn lowers ‖(W − L − S) D‖_F. D is never inverted:
[T D]_r D⁻¹ = Q Qᵀ T for the leading left directions Q of T D, so channels that are never read do no harm. Q goes
from turn to turn by one step of subspace iteration, and is exact in the last.
A size is `count`; the product's rank is what `low_rank_share` of all bytes buys. S holds its column numbers too.
Not nested: every size is decomposed anew, ROUNDS turns of O(mnr + mn log n); until then the largest entries alone bound
its error.
Paper: OATS (arXiv 2409.13652), 80 turns with a truncated SVD in each; bytes here include the indices.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from eckart.compression.metrics import Metric
from eckart.compression.pieces.matrix_piece import MatrixPiece
from eckart.compression.pieces.piece import Piece, bias_of, working
from eckart.compression.settings import Settings
from eckart.linalg import find_range, refresh, weighted_approximation
from eckart.nn import FactoredLinear, Matrix, Observation
from eckart.nn.sparse_layer import START_BYTES, SparseLinear, index_dtype
from eckart.nn.summed import SumLinear

ROUNDS = 20  # turns; 80 lower the error by some 5% more


class Parts(NamedTuple):
    """A product and the largest entries of what it leaves."""

    B: Tensor  # (m, r)
    A: Tensor  # (r, n)
    values: Tensor  # (m, count)
    columns: Tensor  # (m, count) int64, ascending in each row


class SparsePiece(Piece):
    """One matrix as a product and a sparse matrix; its size is the entries that each row of the sparse one holds.

    Args:
        members: The one matrix.
        settings: Its option "low_rank_share", the product's share of the bytes, from 0 to below 1.
        metric: Whose C gives D; its G is not used.

    Raises:
        ValueError: The share does not fit.
    """

    form = "factors+sparse"

    def __init__(self, members: Sequence[Matrix], settings: Settings, metric: Metric) -> None:
        super().__init__(members, settings, metric)
        (self.matrix,) = members
        self.low_rank_share = settings.options["low_rank_share"]
        if not 0 <= self.low_rank_share < 1:
            raise ValueError(f"low_rank_share: {self.low_rank_share!r}; give the product's share, from 0 to below 1")
        self._last: tuple[int, Parts] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape

    @property
    def full(self) -> int:
        return self.shape[1]

    def learn(self, seen: Mapping[str, Observation]) -> None:
        C, _ = self.covariances(self.matrix, seen)
        W = working(self.matrix)
        D = W.new_ones(W.shape[1]) if C is None or not bool(C.any()) else C.diagonal().sqrt().to(W)
        entries = (W * D).double().abs().sort(-1, descending=True).values
        self.learned = {"scale": D, "spectrum": entries.square().sum(0).sqrt()}

    def rank(self, size: int) -> int:
        """The rank of the product beside this many entries in each row."""
        m, n = self.shape
        share = self.low_rank_share / (1 - self.low_rank_share)
        return min(int(share * self._sparse_bytes(size) / ((m + n) * self.itemsize)), m, n)

    def forget(self) -> None:
        super().forget()
        self._last = None

    def bytes(self, size: int) -> int:
        if size == self.full:
            return self.dense_bytes
        return self._sparse_bytes(size) + self.rank(size) * sum(self.shape) * self.itemsize

    def error(self, size: int) -> float:
        if size == self.full:
            return 0.0
        W, D, parts = working(self.matrix), self.learned["scale"], self._parts(size)
        left = W - parts.B.to(W) @ parts.A.to(W)
        left = left.scatter(-1, parts.columns, left.gather(-1, parts.columns) - parts.values.to(W))
        whole = float((W * D).norm())
        return float((left * D).norm()) / whole if whole else 0.0

    def build(self, size: int) -> dict[str, nn.Module]:
        if size == self.full:
            return {}
        bias = bias_of(self.matrix)
        B, A, values, columns = self._parts(size)
        starts = torch.arange(len(values) + 1, device=values.device) * size
        layer = SparseLinear(values.flatten(), columns.flatten(), starts, self.shape[1], None if A.numel() else bias)
        return {self.matrix.name: SumLinear(FactoredLinear(B, A, bias), layer) if A.numel() else layer}

    def _parts(self, size: int) -> Parts:
        """The decomposition at a size; the last one is remembered, since a plan asks for its error before it builds."""
        if self._last is None or self._last[0] != size:
            dtype = self.matrix.weight().dtype
            self._last = size, split(working(self.matrix), self.learned["scale"], self.rank(size), size, dtype)
        return self._last[1]

    def _sparse_bytes(self, size: int) -> int:
        m, n = self.shape
        return m * size * (self.itemsize + index_dtype(n).itemsize) + START_BYTES * (m + 1)


def split(
    W: Tensor,  # (m, n)
    D: Tensor,  # (n,)
    rank: int,
    count: int,
    dtype: torch.dtype,
    rounds: int = ROUNDS,
) -> Parts:
    """A product of this rank and `count` entries in each row, whose sum is near W in ‖(W − L − S) D‖_F.

    Args:
        W: Matrix in float32 or float64.
        D: The sizes of what its columns read, at least 0.
        rank: From 0 to min(m, n).
        count: From 0 to n.
        dtype: Of the parts; the entries make up for the product's rounding in it.
        rounds: Turns.

    Example:
        >>> W = torch.ones(4, 4) + 9 * torch.eye(4)
        >>> parts = split(W, torch.ones(4), 1, 1, torch.float32)
        >>> parts.columns.flatten().tolist(), parts.values.flatten().round(decimals=3).tolist()
        ([0, 1, 2, 3], [9.0, 9.0, 9.0, 9.0])
    """
    values, columns = _largest(W, D, count)
    if not rank:
        return Parts(W.new_zeros(len(W), 0, dtype=dtype), W[:0].to(dtype), values.to(dtype), columns)
    T = W if not count else W.scatter(-1, columns, 0.0)
    Q = find_range(T * D, rank)
    for _ in range(rounds if count else 0):
        T = W.scatter_add(-1, columns, -values)
        Q = refresh(T * D, Q)
        values, columns = _largest(W - Q @ (Q.mT @ T), D, count)
    T = W.scatter_add(-1, columns, -values)
    B, A = (part.to(dtype) for part in weighted_approximation(T, rank, input_covariance=D.square().diag()))
    values, columns = _largest(W - B.to(W) @ A.to(W), D, count)
    return Parts(B, A, values.to(dtype), columns)


def _largest(R: Tensor, D: Tensor, count: int) -> tuple[Tensor, Tensor]:  # (m, n), (n,) -> (m, count) twice
    """The entries of each row that are largest in |R| D, with their columns, ascending."""
    columns = (R * D).abs().topk(count, dim=-1, sorted=False).indices.sort(-1).values
    return R.gather(-1, columns), columns


def with_entries(model: nn.Module, found: Sequence[Matrix], settings: Settings, metric: Metric) -> list[Piece]:
    """Every matrix alone, as a product and a sparse matrix; a convolution as a product alone, which has a layer."""
    return [
        MatrixPiece([matrix], settings, metric, "factors")
        if matrix.kind == "conv"
        else SparsePiece([matrix], settings, metric)
        for matrix in found
    ]
