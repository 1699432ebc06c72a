"""A linear layer that holds a product B A as r of its rows, C, and the combinations P of them that the other rows are.

r(m+n−r) numbers and multiplications (PIFA, arXiv 2501.19090; see `linalg.pivot_factors`), r² fewer than a
`FactoredLinear` of the same map and never more than a dense layer, and one gather of the output.
A plain module: autograd, deepcopy, state_dict, any float dtype and torch.compile work as with `nn.Linear`.
Its `weight` is the dense product, formed anew at each read, for callers that only look at it.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eckart.linalg.pivoting import pivot_factors
from eckart.nn.compressed_linear import CompressedLinear, dense_of, own, own_bias, picked
from eckart.nn.factored import best_product
from eckart.nn.specs import whole


class PivotedLinear(CompressedLinear):
    """y_J = C x, y_rest = P (C x), plus b.

    Args:
        P: (m−r, r), copied.
        C: (r, n), copied; same dtype and device.
        index: (r,) the distinct output positions J, integers below m.
        bias: (m,) or None, copied.

    Raises:
        ValueError: the shapes do not chain, or the index is not r distinct positions.

    Example:
        >>> from eckart.nn import FactoredLinear
        >>> product = FactoredLinear(torch.tensor([[1.0], [4.0], [-2.0]]), torch.tensor([[1.0, 2.0]]))
        >>> layer = PivotedLinear.from_product(product.B, product.A)
        >>> torch.equal(layer.weight, product.weight), layer.P.numel() + layer.C.numel(), product.weight_bytes
        (True, 4, 20)
    """

    kind: ClassVar[str] = "pivoted"
    sizes: ClassVar[tuple[str, ...]] = ("rank",)

    def __init__(
        self,
        P: Tensor,  # (m-r, r)
        C: Tensor,  # (r, n)
        index: Tensor,  # (r,)
        bias: Tensor | None = None,  # (m,)
    ) -> None:
        super().__init__()
        if P.ndim != 2 or C.ndim != 2 or P.shape[1] != C.shape[0]:
            raise ValueError(f"P (m-r, r) and C (r, n) must chain, got shapes {tuple(P.shape)} and {tuple(C.shape)}")
        self.rank, self.in_features = C.shape
        self.out_features = P.shape[0] + self.rank
        self.P, self.C = own(P), own(C)
        self.bias = own_bias(bias, self.out_features)
        self.register_buffer("order", order_of(index, self.rank, self.out_features))
        self.order: Tensor

    @classmethod
    def empty(
        cls,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "PivotedLinear":
        """A layer whose numbers are yet to be loaded (`load_state_dict`); on the device "meta" it takes no memory.

        Raises:
            ValueError: the rank is above out_features, of which it would pick as many.

        Example:
            >>> layer = PivotedLinear.empty(3, 4, rank=2, device="meta")
            >>> {name: tuple(value.shape) for name, value in layer.state_dict().items()}
            {'P': (2, 2), 'C': (2, 3), 'bias': (4,), 'order': (4,)}
        """
        if not 0 <= rank <= out_features:
            raise ValueError(f"rank is {rank}: from 0 to out_features, {out_features}")
        P = torch.empty(out_features - rank, rank, dtype=dtype, device=device)
        bare = P.new_empty(out_features) if bias else None
        layer = cls(P, P.new_empty(rank, in_features), torch.arange(rank, device="cpu"), bare)
        layer.order = layer.order.to(P.device)
        return layer

    @classmethod
    def sizes_in(cls, spec: Mapping[str, Any], m: int, n: int) -> dict[str, Any]:
        return {"rank": whole(spec, "rank", most=m)}

    @classmethod
    def from_product(
        cls,
        B: Tensor,  # (m, r), r ≤ m
        A: Tensor,  # (r, n)
        bias: Tensor | None = None,  # (m,)
    ) -> "PivotedLinear":
        """The same map as FactoredLinear(B, A, bias), to rounding, in r² fewer numbers."""
        index, _, P, C = pivot_factors(B.detach(), A.detach())
        return cls(P, C, index, bias)

    @classmethod
    def from_linear(cls, linear: nn.Module, rank: int) -> "PivotedLinear":
        """The best approximation of a dense layer by this rank (see `FactoredLinear.from_linear`), pivoted."""
        W, bias = dense_of(linear)
        index, _, P, C = pivot_factors(*best_product(W, rank))
        return cls(P.to(W.dtype), C.to(W.dtype), index, bias)

    @property
    def weight(self) -> Tensor:  # (m, n)
        """The dense product."""
        return torch.cat((self.C, self.P @ self.C)).index_select(0, self.order)

    def forward(self, x: Tensor) -> Tensor:  # (..., n) -> (..., m)
        """Two products, first with C, then with P, and a gather that puts the outputs in order."""
        z = F.linear(x, self.C)
        y = picked(torch.cat((z, F.linear(z, self.P)), -1), self.order)
        return y if self.bias is None else y + self.bias


def order_of(index: Tensor, r: int, m: int) -> Tensor:  # (r,) -> (m,) int32
    """Where each output stands among [pivots, rest], the rest ascending."""
    index = index.long()
    taken = torch.zeros(m, dtype=torch.bool, device=index.device)
    if index.shape != (r,) or (r > 0 and not 0 <= int(index.min()) <= int(index.max()) < m):
        raise ValueError(f"index must be {r} positions below {m}, got {index.tolist()}")
    taken[index] = True
    rest = (~taken).nonzero().flatten()
    if len(rest) != m - r:
        raise ValueError(f"index must be {r} distinct positions, got {index.tolist()}")
    return torch.cat((index, rest)).argsort().int()
