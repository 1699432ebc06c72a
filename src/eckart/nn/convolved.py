"""Convolutions that hold a product of rank r instead of a dense matrix (m, n), m = out, n = in · kernel.

| layer | holds | numbers | computes |
|---|---|---|---|
| `FactoredConv` | B (m, r), A (r, n) | r(m+n) | r filters A, and m combinations B of their channels |
| `PivotedConv` | P (m−r, r), C (r, n) | r(m+n−r) | r of the m channels, and the rest as combinations P of those |

As for linear layers (see `nn.factored`, `nn.pivoted`): plain modules, any stride, padding, padding mode and dilation,
no groups; with or without a batch dimension. A pivoted one ends in one gather of channels.
Paper: PIFA (arXiv 2501.19090) is of linear layers; the same product serves convolutions.
"""

from math import prod
from typing import ClassVar

import torch
from torch import Tensor, nn

from eckart.linalg.pivoting import pivot_factors
from eckart.nn.compressed_linear import own
from eckart.nn.convolution import CompressedConv, require_convolution
from eckart.nn.pivoted import order_of


class FactoredConv(CompressedConv):
    """A convolution with r filters, then a combination of their channels at each position, plus b.

    Args:
        convolution: Conv1d, Conv2d or Conv3d without groups, whose stride, padding and the like are taken.
        B: (m, r), copied.
        A: (r, in · kernel), copied; same dtype and device.
        bias: (m,) or None, copied.

    Raises:
        TypeError: it is no such convolution.
        ValueError: the shapes do not fit it.

    Example:
        >>> conv = nn.Conv2d(3, 4, 2, bias=False)
        >>> layer = FactoredConv(conv, torch.ones(4, 1), torch.ones(1, 12))
        >>> layer(torch.ones(3, 2, 2)).flatten().tolist(), layer.weight_bytes
        ([12.0, 12.0, 12.0, 12.0], 64)
    """

    kind: ClassVar[str] = "factored_conv"

    def __init__(
        self,
        convolution: nn.Module,
        B: Tensor,  # (m, r)
        A: Tensor,  # (r, n)
        bias: Tensor | None = None,  # (m,)
    ) -> None:
        super().__init__(convolution, len(A), bias)
        _check("B", B, (self.out_features, self.rank))
        _check("A", A, (self.rank, self.in_features))
        self.B, self.A = own(B), own(A)

    @classmethod
    def empty(
        cls,
        convolution: nn.Module,
        rank: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "FactoredConv":
        """A layer for the place of a convolution, whose numbers are yet to be loaded (`load_state_dict`).

        Example:
            >>> layer = FactoredConv.empty(nn.Conv1d(3, 4, 5), rank=2, device="meta")
            >>> {name: tuple(value.shape) for name, value in layer.state_dict().items()}
            {'bias': (4,), 'B': (4, 2), 'A': (2, 15)}
        """
        m, n = shape_of(convolution)
        B = torch.empty(m, rank, dtype=dtype, device=device)
        return cls(convolution, B, B.new_empty(rank, n), B.new_empty(m) if convolution.bias is not None else None)

    @classmethod
    def from_product(
        cls,
        convolution: nn.Module,
        B: Tensor,  # (m, r)
        A: Tensor,  # (r, n)
    ) -> "FactoredConv":
        """The layer of B A in the place of a convolution, with its bias and in its dtype."""
        dtype = convolution.weight.dtype
        return cls(convolution, B.to(dtype), A.to(dtype), convolution.bias)  # type: ignore[arg-type]

    @property
    def weight(self) -> Tensor:  # (m, n)
        return self.B @ self.A

    def forward(self, x: Tensor) -> Tensor:  # ([B,] in, L...) -> ([B,] m, L'...)
        """Two convolutions, first with the filters A, then pointwise with B."""
        return self.combined(self.filtered(x, self.A), self.B, self.bias)


class PivotedConv(CompressedConv):
    """A convolution that computes r of its output channels, J, and the rest as combinations P of those, plus b.

    Args:
        convolution: Conv1d, Conv2d or Conv3d without groups, whose stride, padding and the like are taken.
        P: (m−r, r), copied.
        C: (r, in · kernel), copied; same dtype and device.
        index: (r,) the distinct output channels J, integers below m.
        bias: (m,) or None, copied.

    Raises:
        TypeError: it is no such convolution.
        ValueError: the shapes do not fit it, or the index is not r distinct channels.

    Example:
        >>> conv = nn.Conv2d(1, 3, 1, bias=False)
        >>> layer = PivotedConv.from_product(conv, torch.tensor([[1.0], [4.0], [-2.0]]), torch.tensor([[0.5]]))
        >>> layer(torch.ones(1, 1, 1)).flatten().tolist(), layer.weight_bytes
        ([0.5, 2.0, -1.0], 24)
    """

    kind: ClassVar[str] = "pivoted_conv"

    def __init__(
        self,
        convolution: nn.Module,
        P: Tensor,  # (m-r, r)
        C: Tensor,  # (r, n)
        index: Tensor,  # (r,)
        bias: Tensor | None = None,  # (m,)
    ) -> None:
        super().__init__(convolution, len(C), bias)
        _check("P", P, (self.out_features - self.rank, self.rank))
        _check("C", C, (self.rank, self.in_features))
        self.P, self.C = own(P), own(C)
        self.register_buffer("order", order_of(index, self.rank, self.out_features))
        self.order: Tensor

    @classmethod
    def empty(
        cls,
        convolution: nn.Module,
        rank: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "PivotedConv":
        """A layer for the place of a convolution, whose numbers are yet to be loaded (`load_state_dict`).

        Raises:
            ValueError: the rank is above the output channels, of which it would pick as many.

        Example:
            >>> layer = PivotedConv.empty(nn.Conv1d(3, 4, 5, bias=False), rank=2, device="meta")
            >>> {name: tuple(value.shape) for name, value in layer.state_dict().items()}
            {'P': (2, 2), 'C': (2, 15), 'order': (4,)}
        """
        m, n = shape_of(convolution)
        if not 0 <= rank <= m:
            raise ValueError(f"rank is {rank}: from 0 to out_channels, {m}")
        P = torch.empty(m - rank, rank, dtype=dtype, device=device)
        bare = P.new_empty(m) if convolution.bias is not None else None
        layer = cls(convolution, P, P.new_empty(rank, n), torch.arange(rank, device="cpu"), bare)
        layer.order = layer.order.to(P.device)
        return layer

    @classmethod
    def from_product(
        cls,
        convolution: nn.Module,
        B: Tensor,  # (m, r), r ≤ m
        A: Tensor,  # (r, n)
    ) -> "PivotedConv":
        """The layer of B A in the place of a convolution, with its bias and in its dtype; B and A may be wider."""
        index, _, P, C = pivot_factors(B.detach(), A.detach())
        dtype = convolution.weight.dtype
        return cls(convolution, P.to(dtype), C.to(dtype), index, convolution.bias)  # type: ignore[arg-type]

    @property
    def weight(self) -> Tensor:  # (m, n)
        return torch.cat((self.C, self.P @ self.C)).index_select(0, self.order)

    def forward(self, x: Tensor) -> Tensor:  # ([B,] in, L...) -> ([B,] m, L'...)
        """Two convolutions, first with the channels C, then pointwise with P, and a gather that puts them in order."""
        z, channels = self.filtered(x, self.C), -1 - self.dimensions
        rest = (self.combined(z, self.P, None),) if len(self.P) else ()  # torch has no convolution with no outputs
        kept = (z,) if self.rank else ()
        y = torch.cat((*kept, *rest), channels).index_select(channels, self.order)
        return y if self.bias is None else y + self.bias.reshape(-1, *(1,) * self.dimensions)


def shape_of(convolution: nn.Module) -> tuple[int, int]:
    """(m, n) of a convolution without groups."""
    require_convolution(convolution)
    kernel: tuple[int, ...] = convolution.kernel_size  # type: ignore[assignment]
    return convolution.out_channels, convolution.in_channels * prod(kernel)  # type: ignore[return-value,operator]


def _check(name: str, W: Tensor, shape: tuple[int, int]) -> None:
    if W.shape != shape:
        raise ValueError(f"{name} must have shape {shape} to fit the convolution, got {tuple(W.shape)}")
