"""Attention with fewer dimensions in its heads: what its two pairs of matrices, v with o and q with k, have in common.

Query heads in groups share a head of keys and values (grouped-query attention; a group of one where they do not), and a
dimension of that head goes for the whole group. Heads need not keep the same number: the dimensions with most energy
stay, whichever their head. The layers are `SelectedLinear`: v, q and k write the dimensions that stay, the others are
zero, and o reads only those written, so the attention between them stays as it is, and so does a cache of its keys and
values.
Paper: MoDeGPT (arXiv 2408.09632) gives every head the same size.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from eckart.compression.metrics import Metric
from eckart.compression.pieces.piece import Piece
from eckart.compression.settings import Settings
from eckart.nn import Matrix


class HeadsPiece(Piece):
    """Two matrices of one attention; the size is the dimensions left in all the heads of keys and values together.

    Args:
        first: q or v.
        second: k or o.
        heads: How many query heads.
        kv_heads: How many heads of keys and values; each serves heads / kv_heads of the query heads, one after another.
        settings: See `Settings`.
        metric: In which error what stays is best.

    Raises:
        ValueError: The matrices do not have so many heads of one width.
    """

    def __init__(
        self, first: Matrix, second: Matrix, heads: int, kv_heads: int, settings: Settings, metric: Metric
    ) -> None:
        super().__init__([first, second], settings, metric)
        self.first, self.second = first, second
        self.group, odd = divmod(heads, kv_heads)
        wide, narrow = self.widths()
        self.kv_heads, self.head_dim = kv_heads, narrow // kv_heads
        if odd or narrow != self.head_dim * kv_heads or wide != self.head_dim * heads:
            shapes = f"{first.name} {first.shape} and {second.name} {second.shape}"
            raise ValueError(f"heads: {shapes} do not have {heads} query heads for {kv_heads} others of one width")

    @abstractmethod
    def widths(self) -> tuple[int, int]:
        """The dimensions of all query heads, and of all heads of keys or values."""

    @property
    def full(self) -> int:
        return self.shape[1]

    def places(self, kept: Tensor) -> Tensor:  # (s,) ascending -> (group · s,) ascending
        """Where the query heads have the dimensions of keys and values that stay."""
        head, dim = kept // self.head_dim, kept % self.head_dim
        group = torch.arange(self.group, device=kept.device).unsqueeze(-1)
        return ((head * self.group + group) * self.head_dim + dim).flatten().sort().values
