"""Values and outputs of attention, decomposed together, head by head.

    o(v(x)) = Σ_h W_o,h W_v,g x  ≈  Σ_h (W_o,h B_g)(A_g x),    A_g (s_g, n), B_g (d, s_g),    h the query heads of g

A value head meets the outputs only through the W_o,h of its group. So the best B_g A_g is that of W_v,g in the metrics
C (n, n) of the inputs and Σ_h W_o,hᵀ G W_o,h (d, d) of what reads it, and the singular values are those of the matrices
G^{1/2} W_o,h W_v,g C^{1/2} of a group, one above the other: the error of a size is their tail, over all heads.

B_g takes in what it can of the bias of v. The rest goes through the softmax, whose weights sum to one, into the bias
of o, which gets one if it has none.
Cost: a d×d `eigh` for each head, and products with C.
Paper: MoDeGPT (arXiv 2408.09632) takes roots of C and an SVD of n×n, and gives every head the same size.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from eckart.compression.pieces.attention_piece import HeadsPiece
from eckart.compression.pieces.piece import bias_of, working
from eckart.compression.pieces.storages import INDEX_BYTES
from eckart.linalg import weighted_approximation
from eckart.nn import Observation
from eckart.nn.selected import SelectedLinear


class ValueOutputPiece(HeadsPiece):
    """v and o, each head of v decomposed with all that reads it; see `HeadsPiece`."""

    form = "values"

    def widths(self) -> tuple[int, int]:
        return self.second.shape[1], self.first.shape[0]

    @property
    def of_outputs(self) -> bool:
        """Only with output gradients do errors of outputs of several kinds add up."""
        return "output_gradient_covariance" in self.metric.wanted

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers that one dimension takes, and the dimensions."""
        return self.first.shape[1] + self.group * self.second.shape[0], self.first.shape[0]

    def learn(self, seen: Mapping[str, Observation]) -> None:
        C, _ = self.covariances(self.first, seen)
        _, G = self.covariances(self.second, seen)
        W = working(self.first).unflatten(0, (self.kv_heads, self.head_dim))
        read = self._read(working(self.second).double(), G)
        B, A = weighted_approximation(W, self.head_dim, input_covariance=C, output_covariance=read)
        reached = (B.double() * (read @ B.double())).sum(-2)  # (heads, d), of directions that are orthogonal in `read`
        V = A.double() if C is None else A.double() @ C.double()
        energies = ((V * A.double()).sum(-1) * reached).clamp_min(0).cummin(-1).values.flatten()
        ranked = energies.sort(descending=True, stable=True)
        self.learned = {"B": B, "A": A, "order": ranked.indices, "spectrum": ranked.values.sqrt()}
        bias = bias_of(self.first)
        if bias is not None:
            b = bias.detach().double().view(self.kv_heads, self.head_dim, 1)
            along = (B.double().mT @ (read @ b)).squeeze(-1)
            self.learned["bias"] = torch.where(reached > 0, along / reached.clamp_min(1e-300), 0.0).to(B.dtype)

    def _read(self, W: Tensor, G: Tensor | None) -> Tensor:  # (p, heads · d), (p, p) -> (kv_heads, d, d)
        """Σ_h W_o,hᵀ G W_o,h of each group."""
        heads = W.unflatten(1, (self.kv_heads, self.group, self.head_dim))
        weighted = heads if G is None else torch.einsum("pq,qghd->pghd", G.double(), heads)
        return torch.einsum("pghd,pghe->gde", weighted, heads)

    def bytes(self, size: int) -> int:
        if size == self.full:
            return self.dense_bytes
        return size * self.shape[0] * self.itemsize + INDEX_BYTES * (self.first.shape[0] + self.group * size)

    def build(self, size: int) -> dict[str, nn.Module]:
        if size == self.full:
            return {}
        kept = self.learned["order"][:size].sort().values  # of each head its first ones
        (m, n), (p, wide), dtype = self.first.shape, self.second.shape, self.first.weight().dtype
        reads = working(self.second).unflatten(1, (self.kv_heads, self.group, self.head_dim))
        places = self.places(kept)
        core = torch.einsum("pghd,gde->pghe", reads, self.learned["B"]).flatten(1)[:, places]
        bias, moved = self._biases(kept, reads)
        core, bias, moved = core.to(dtype), _in(dtype, bias), _in(dtype, moved)
        A = self.learned["A"].flatten(0, 1)[kept].to(dtype)
        return {
            self.first.name: SelectedLinear(A, n, m, rows=kept, bias=bias),
            self.second.name: SelectedLinear(core, wide, p, columns=places, bias=moved),
        }

    def _biases(self, kept: Tensor, reads: Tensor) -> tuple[Tensor | None, Tensor | None]:  # (s,), (p, g, h, d)
        """The biases of v and o."""
        given, after = bias_of(self.first), bias_of(self.second)
        if given is None:
            return None, after
        stays = torch.zeros_like(self.learned["bias"]).flatten()
        stays[kept] = self.learned["bias"].flatten()[kept]
        reached = self.learned["B"] @ stays.view(self.kv_heads, self.head_dim, 1)
        rest = given.detach().to(stays.dtype).view(self.kv_heads, self.head_dim) - reached.squeeze(-1)
        moved = torch.einsum("pghd,gd->p", reads, rest)
        return stays, moved if after is None else after.detach().to(moved.dtype) + moved


def _in(dtype: torch.dtype, bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.to(dtype)
