"""Sums over the rows that a matrix reads, which grow by rows and merge, in memory that no number of rows changes.

For rows x (n,) of each of `stack` matrices: Σ x (n,), Σ x∘x (n,), the scatter Σ (x−μ)(x−μ)ᵀ (n, n) about the rows'
own mean μ, and a uniform sample of the rows. The scatter grows by that of each new part about its own mean, and by the
outer product of the difference of the means (Chan, Golub and LeVeque 1983): a channel with a large mean loses no digits
of its variance, as it would in Σ x xᵀ − N μμᵀ. The sample keeps the rows with the largest of independent random keys,
so that samples of two parts merge into a sample of the whole. Σ x is kept in float64, the rest in float32, or float64
for float64 rows; products are taken outside autocast.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from eckart.linalg import add_gram, symmetrize

_CHUNK = 1 << 24  # numbers converted at a time


@dataclass(frozen=True)
class Kept:
    """What to keep of the rows."""

    moments: bool = False  # Σ (x−μ)(x−μ)ᵀ
    squares: bool = False  # Σ x∘x
    sample: int = 0  # rows kept, at most


class Statistics:
    """Sums over rows, one for each matrix of a stack.

    Args:
        kept: what to keep beside the plain sum.
        stack: number of matrices.
        width: n, the length of a row.
        like: a tensor whose device and dtype the rows have.

    Example:
        >>> rows = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
        >>> statistics = Statistics(Kept(moments=True), 1, 2, rows)
        >>> statistics.add([rows], slice(0, 1))
        >>> statistics.sum, statistics.scatter
        (tensor([[4., 6.]], dtype=torch.float64), tensor([[[2., 2.],
                 [2., 2.]]]))
        >>> statistics.moments()
        tensor([[[10., 14.],
                 [14., 20.]]])
    """

    def __init__(self, kept: Kept, stack: int, width: int, like: Tensor) -> None:
        self.kept = kept
        self.dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.sum = torch.zeros(stack, width, dtype=torch.float64, device=like.device)
        zeros = torch.zeros((), dtype=self.dtype, device=like.device).new_zeros
        self.squares = zeros(stack, width) if kept.squares and not kept.moments else None
        self._lower = zeros(stack, width, width) if kept.moments else None  # the scatter; its upper triangle is left
        self.count = torch.zeros(stack, dtype=torch.float64)  # on the CPU: it is known there
        self.rows = torch.empty(0, width, dtype=like.dtype, device=like.device)
        self.keys = torch.empty(0, dtype=torch.float64, device=like.device)

    @property
    def scatter(self) -> Tensor | None:  # (stack, n, n)
        """Σ (x−μ)(x−μ)ᵀ, where that is kept: the running sum itself, whose upper triangle is filled in at each call."""
        if self._lower is not None:
            for each in self._lower:  # one matrix at a time, so that no stack is copied whole
                symmetrize(each)
        return self._lower

    @torch.no_grad()
    def add(
        self,
        chunks: Iterable[Tensor],  # each (s, N, n)
        slots: slice,  # which s matrices of the stack read them
        keys: Tensor | None = None,  # (s · all N,): the rows' random keys, for the sample
    ) -> None:
        """Count more rows."""
        start = 0
        for chunk in chunks:
            if keys is not None:
                stop = start + chunk.shape[0] * chunk.shape[1]
                self._sample(chunk.reshape(-1, chunk.shape[-1]), keys[start:stop])
                start = stop
            step = max(1, _CHUNK // max(1, chunk.shape[0] * chunk.shape[2]))
            for rows in chunk.split(step, dim=1):
                self._add(rows.to(self.dtype), slots)

    def _add(self, rows: Tensor, slots: slice) -> None:  # (s, N, n)
        total = rows.sum(1)
        with torch.autocast(rows.device.type, enabled=False):
            if self._lower is not None and rows.shape[1]:
                self._move(slots, total, float(rows.shape[1]))
                rows = rows - total.unsqueeze(1) / rows.shape[1]
                add_gram(self._lower[slots], rows)
            if self.squares is not None:
                self.squares[slots] += rows.square().sum(1)
        self.sum[slots] += total
        self.count[slots] += rows.shape[1]

    def _move(self, slots: slice, total: Tensor, count: Tensor | float) -> None:  # (s, n), (s,)
        """What two parts with different means add to the scatter about the mean of both."""
        assert self._lower is not None
        ours = self.count[slots]
        count = torch.as_tensor(count, dtype=torch.float64).expand_as(ours)
        delta = (total / _column(count, self.sum) - self.sum[slots] / _column(ours, self.sum)).to(self.dtype)
        weight = ours * count / (ours + count).clamp(min=1)
        self._lower[slots].baddbmm_((delta * weight.to(delta).unsqueeze(-1)).unsqueeze(-1), delta.unsqueeze(-2))

    def _sample(self, rows: Tensor, keys: Tensor) -> None:  # (N, n), (N,)
        top = keys.topk(min(self.kept.sample, len(keys))).indices
        keys = torch.cat([self.keys, keys[top]])
        rows = torch.cat([self.rows, rows[top].to(self.rows.dtype)])
        self.keys, top = keys.topk(min(self.kept.sample, len(keys)))
        self.rows = rows[top]

    def merge(self, other: "Statistics", slots: slice) -> None:
        """Count what another one counted, whose stack is our `slots`."""
        if self._lower is not None and other._lower is not None:
            self._move(slots, other.sum, other.count)
            self._lower[slots] += other._lower
        self.sum[slots] += other.sum
        self.count[slots] += other.count
        if self.squares is not None and other.squares is not None:
            self.squares[slots] += other.squares
        if len(other.keys):
            self._sample(other.rows, other.keys)

    def clone(self) -> "Statistics":
        """A copy that grows on its own."""
        copy = object.__new__(Statistics)
        copy.__dict__.update({k: v.clone() if isinstance(v, Tensor) else v for k, v in self.__dict__.items()})
        return copy

    def moments(self) -> Tensor:  # (stack, n, n)
        """Σ x xᵀ."""
        scatter = self.scatter
        if scatter is None:
            raise ValueError("moments were not kept")
        mean = (self.sum / _column(self.count, self.sum)).to(self.dtype)
        return torch.baddbmm(scatter, self.sum.to(self.dtype).unsqueeze(-1), mean.unsqueeze(-2))

    def squared_norms(self) -> Tensor:  # (stack, n)
        """Σ x∘x, read off the scatter where that is kept."""
        if self._lower is not None:
            means = self.sum.square() / _column(self.count, self.sum)
            return self._lower.diagonal(dim1=-2, dim2=-1) + means.to(self.dtype)
        if self.squares is None:
            raise ValueError("neither moments nor squares were kept")
        return self.squares


def _column(count: Tensor, total: Tensor) -> Tensor:  # (s,) -> (s, 1)
    """Counts as a divisor of sums; one where nothing was counted."""
    return count.clamp(min=1).to(total).unsqueeze(-1)
