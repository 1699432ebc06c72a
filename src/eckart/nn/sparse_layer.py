"""A linear layer that holds only the entries of its weight that are not zero: values, their columns, where rows start.

count numbers in the layer's dtype, count column numbers in the smallest integer type that holds n − 1, and m+1 int32
(compressed sparse rows). The forward pass writes the values into a dense matrix and multiplies with that: right on
every device, with gradients to the values; fewer bytes are held, no time is saved.
Paper: none; OATS (arXiv 2409.13652) leaves the format open.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from eckart.nn.compressed_linear import CompressedLinear, own, own_bias
from eckart.nn.specs import whole

START_BYTES = 4  # of one int32 that says where a row starts


class SparseLinear(CompressedLinear):
    """y = S x + b, S held by its entries that are not zero.

    Args:
        values: (count,), row by row, copied.
        columns: (count,) the column of each, integers below n, no two alike in a row.
        starts: (m+1,) where each row's values start; the last is count.
        in_features: n.
        bias: (m,) or None, copied.

    Raises:
        ValueError: the three do not fit together.

    Example:
        >>> layer = SparseLinear.from_matrix(torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, -1.0]]))
        >>> layer(torch.tensor([1.0, 10.0, 100.0])).tolist(), layer.columns.tolist(), layer.weight_bytes
        ([20.0, -99.0], [1, 0, 2], 27)
    """

    kind: ClassVar[str] = "sparse"
    sizes: ClassVar[tuple[str, ...]] = ("count",)
    columns: Tensor  # (count,)
    starts: Tensor  # (m+1,) int32

    def __init__(
        self,
        values: Tensor,  # (count,)
        columns: Tensor,  # (count,)
        starts: Tensor,  # (m+1,)
        in_features: int,
        bias: Tensor | None = None,  # (m,)
    ) -> None:
        super().__init__()
        if values.ndim != 1 or columns.shape != values.shape or starts.ndim != 1 or not len(starts):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (values, columns, starts))
            raise ValueError(f"values and columns must be (count,) and starts (m+1,), got shapes {shapes}")
        if not values.is_meta:
            _check_places(columns.long(), starts.long(), in_features)
        self.out_features, self.in_features = len(starts) - 1, in_features
        self.values = own(values)
        self.register_buffer("columns", columns.detach().to(index_dtype(in_features), copy=True))
        self.register_buffer("starts", starts.detach().to(torch.int32, copy=True))
        self.bias = own_bias(bias, self.out_features)

    @classmethod
    def empty(
        cls,
        in_features: int,
        out_features: int,
        count: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "SparseLinear":
        """A layer whose numbers are yet to be loaded (`load_state_dict`); on the device "meta" it takes no memory.

        Example:
            >>> layer = SparseLinear.empty(300, 4, count=9, dtype=torch.bfloat16, device="meta")
            >>> {name: (tuple(value.shape), value.element_size()) for name, value in layer.state_dict().items()}
            {'values': ((9,), 2), 'bias': ((4,), 2), 'columns': ((9,), 2), 'starts': ((5,), 4)}
        """
        values = torch.zeros(count, dtype=dtype, device=device)
        place = torch.arange(count, device=values.device)
        starts = (torch.arange(out_features + 1, device=values.device) * in_features).clamp_max(count)
        return cls(values, place % in_features, starts, in_features, values.new_zeros(out_features) if bias else None)

    @classmethod
    def sizes_in(cls, spec: Mapping[str, Any], m: int, n: int) -> dict[str, Any]:
        return {"count": whole(spec, "count", most=m * n)}

    @classmethod
    def from_matrix(
        cls,
        S: Tensor,  # (m, n)
        bias: Tensor | None = None,  # (m,)
    ) -> "SparseLinear":
        """The entries of a matrix that are not zero."""
        counts = (S != 0).sum(-1)
        starts = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
        rows, columns = S.nonzero(as_tuple=True)
        return cls(S[rows, columns], columns, starts, S.shape[1], bias)

    @property
    def count(self) -> int:
        """How many entries it holds."""
        return len(self.values)

    @property
    def weight(self) -> Tensor:  # (m, n)
        """The matrix, zeros written out."""
        m, n = self.out_features, self.in_features
        rows = torch.arange(m, device=self.values.device)
        rows = rows.repeat_interleave(self.starts.diff().long(), output_size=len(self.values))
        flat = self.values.new_zeros(m * n).index_put((rows * n + self.columns.long(),), self.values)
        return flat.view(m, n)

    def forward(self, x: Tensor) -> Tensor:  # (..., n) -> (..., m)
        """The product with the matrix, written out."""
        return F.linear(x, self.weight, self.bias)


def index_dtype(n: int) -> torch.dtype:
    """The smallest integer type that holds n − 1.

    Example:
        >>> index_dtype(256), index_dtype(257), index_dtype(2**15 + 1)
        (torch.uint8, torch.int16, torch.int32)
    """
    return torch.uint8 if n <= 2**8 else torch.int16 if n <= 2**15 else torch.int32


def _check_places(columns: Tensor, starts: Tensor, n: int) -> None:
    """Raise ValueError unless every value has a place of its own."""
    count = len(columns)
    if int(starts[0]) != 0 or int(starts[-1]) != count or bool((starts.diff() < 0).any()):
        raise ValueError(f"starts must ascend from 0 to the {count} values, got {starts[[0, -1]].tolist()} at its ends")
    if count and not 0 <= int(columns.min()) <= int(columns.max()) < n:
        raise ValueError(f"columns must be from 0 to {n - 1}, got {int(columns.min())} to {int(columns.max())}")
    rows = torch.arange(len(starts) - 1, device=columns.device).repeat_interleave(starts.diff())
    if len((rows * n + columns).unique()) != count:
        raise ValueError("columns must differ within a row: add values of the same place together first")
