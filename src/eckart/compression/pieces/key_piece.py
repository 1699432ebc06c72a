"""Queries and keys of attention with fewer dimensions: q_hᵀ k_g = Σ_i q_h,i k_g,i over those i that stay.

Of a dimension i, E[k_i²] Σ_h E[q_h,i²] is left out, h the query heads of the group: the error² of the scores of two
tokens that have nothing to do with each other, if dimensions are not correlated. With output gradients g it is
Σ_h E[q_h,i²] E[g_h,i²], the change of the loss to second order if they are not correlated either. Both are estimates.

Dimensions i and i + d/2 stay or go together whenever d is even. A rotary embedding turns them into each other; names do
not tell whether there is one, and where there is none the pairs do no harm. Nor do they where it turns other pairs, or
a part of the head only: what goes is zero before the rotation, in q and k alike; only the choice is not the best then.
Cost: products with C.
Paper: MoDeGPT (arXiv 2408.09632) sums over a group as we do, and gives every head the same size.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from eckart.compression.pieces.attention_piece import HeadsPiece
from eckart.compression.pieces.piece import bias_of
from eckart.compression.pieces.storages import INDEX_BYTES
from eckart.nn import Matrix, Observation
from eckart.nn.selected import SelectedLinear


class QueryKeyPiece(HeadsPiece):
    """q and k, without some dimensions (pairs of them, where a head has an even number); see `HeadsPiece`.

    An odd size of pairs counts as the even one below.
    """

    form = "keys"

    def widths(self) -> tuple[int, int]:
        return self.first.shape[0], self.second.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers that one dimension takes, and the dimensions."""
        return self.group * self.first.shape[1] + self.second.shape[1], self.second.shape[0]

    @property
    def of_outputs(self) -> bool:
        """Its error is of scores."""
        return False

    @property
    def step(self) -> int:
        """How many dimensions go together."""
        return 2 if self.head_dim % 2 == 0 else 1

    def learn(self, seen: Mapping[str, Observation]) -> None:
        q, G = self._energy(self.first, seen)
        k, _ = self._energy(self.second, seen)
        shape = (self.kv_heads, self.group, self.step, self.head_dim // self.step)
        if G is not None:
            energies = (q * G.diagonal().to(q)).view(shape).sum((1, 2))
        else:
            energies = q.view(shape).sum((1, 2)) * k.view(self.kv_heads, *shape[2:]).sum(1)
        ranked = energies.flatten().sort(descending=True, stable=True)
        spectrum = (ranked.values / self.step).sqrt().repeat_interleave(self.step)
        self.learned = {"order": ranked.indices, "spectrum": spectrum}

    def _energy(self, matrix: Matrix, seen: Mapping[str, Observation]) -> tuple[Tensor, Tensor | None]:
        """E[y_i²] of each output, its bias included, in float64; and the covariance of the outputs' gradients."""
        observed = self.observed(matrix, seen)
        C, G = self.covariances(matrix, seen)
        W = matrix.weight().detach().double()
        energy = ((W if C is None else W @ C.double()) * W).sum(-1)
        bias = bias_of(matrix)
        if bias is not None:
            b = bias.detach().double()
            mean = 0.0 if observed.input_sum is None else W @ observed.mean.double()
            energy = energy + 2 * b * mean + b.square()
        return energy.clamp_min(0), G

    def bytes(self, size: int) -> int:
        if size == self.full:
            return self.dense_bytes
        indices = INDEX_BYTES * (self.first.shape[0] + self.second.shape[0])
        return self._whole(size) * self.shape[0] * self.itemsize + indices

    def error(self, size: int) -> float:
        return super().error(self._whole(size))

    def build(self, size: int) -> dict[str, nn.Module]:
        if size == self.full:
            return {}
        head, pair = self._pairs(size)
        half = self.head_dim // self.step
        dims = torch.arange(self.step, device=pair.device).unsqueeze(-1) * half
        kept = (head * self.head_dim + pair + dims).flatten().sort().values
        return {
            self.first.name: _selected(self.first, self.places(kept)),
            self.second.name: _selected(self.second, kept),
        }

    def _pairs(self, size: int) -> tuple[Tensor, Tensor]:  # (size / step,) each
        """The heads and the pairs in them that stay."""
        order, half = self.learned["order"][: size // self.step], self.head_dim // self.step
        return order // half, order % half

    def _whole(self, size: int) -> int:
        return size // self.step * self.step


def _selected(matrix: Matrix, rows: Tensor) -> SelectedLinear:
    """The layer of some rows; the bias is zero elsewhere."""
    bias = bias_of(matrix)
    if bias is not None:
        bias = torch.zeros_like(bias).index_copy(0, rows, bias.detach()[rows])
    m, n = matrix.shape
    return SelectedLinear(matrix.weight().detach()[rows], n, m, rows=rows, bias=bias)
