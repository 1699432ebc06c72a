"""A linear layer that reads some of its inputs and writes some of its outputs; the outputs that it leaves out are zero.

W (m, n) is zero but for m' of its rows and n' of its columns, and only those are held: m'n' numbers, and as many
multiplications for each token. So a projection of attention may lose dimensions of its heads while what calls it still
sees heads of the old size. The outputs are put in their places by one gather, from m small integers.
A plain module: autograd, deepcopy, state_dict, any float dtype and torch.compile work as with `nn.Linear`.
Its `weight` is the dense matrix, formed anew at each read, for callers that only look at it.
Paper: none.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from eckart.nn.compressed_linear import CompressedLinear, own, own_bias, picked
from eckart.nn.specs import whole


class SelectedLinear(CompressedLinear):
    """y_rows = core x_columns, y elsewhere zero, plus b.

    Args:
        core: (m', n'), copied.
        in_features: n.
        out_features: m.
        rows: (m',) the distinct output positions that it writes; None: all, m' = m.
        columns: (n',) the distinct input positions that it reads; None: all, n' = n.
        bias: (m,) or None, copied.

    Raises:
        ValueError: The positions do not fit the core and the sizes, or the bias does not.

    Example:
        >>> layer = SelectedLinear(torch.tensor([[1.0, 2.0]]), 3, 4, torch.tensor([1]), torch.tensor([0, 2]))
        >>> layer(torch.tensor([1.0, 10.0, 100.0])).tolist()
        [0.0, 201.0, 0.0, 0.0]
    """

    kind: ClassVar[str] = "selected"
    sizes: ClassVar[tuple[str, ...]] = ("rows", "columns")

    def __init__(
        self,
        core: Tensor,  # (m', n')
        in_features: int,
        out_features: int,
        rows: Tensor | None = None,  # (m',)
        columns: Tensor | None = None,  # (n',)
        bias: Tensor | None = None,  # (m,)
    ) -> None:
        super().__init__()
        if core.ndim != 2:
            raise ValueError(f"core must be a matrix (m', n'), got shape {tuple(core.shape)}")
        height, width = core.shape
        written, read = _places("rows", rows, height, out_features), _places("columns", columns, width, in_features)
        order = None
        if written is not None:
            order = written.new_full((out_features,), height)
            order[written] = torch.arange(height, device=order.device)
        self.in_features, self.out_features = in_features, out_features
        self.core = own(core)
        self.bias = own_bias(bias, out_features)
        self.register_buffer("order", None if order is None else order.int())
        self.register_buffer("columns", None if read is None else read.int())
        self.order: Tensor | None  # (m,) which row of the core an output is, m' where it is none
        self.columns: Tensor | None  # (n',)

    @classmethod
    def empty(
        cls,
        in_features: int,
        out_features: int,
        rows: int | None = None,
        columns: int | None = None,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "SelectedLinear":
        """A layer whose numbers are yet to be loaded (`load_state_dict`); on the device "meta" it takes no memory.

        Args:
            in_features: n.
            out_features: m.
            rows: m', how many outputs it writes; None: all of them, without a gather.
            columns: n', how many inputs it reads; None: all of them.
            bias: Whether it has one.
            dtype: Of core and bias; None is torch's default.
            device: Where it is made.

        Raises:
            ValueError: More rows or columns than there are.

        Example:
            >>> layer = SelectedLinear.empty(3, 4, rows=2, device="meta")
            >>> {name: tuple(value.shape) for name, value in layer.state_dict().items()}
            {'core': (2, 3), 'bias': (4,), 'order': (4,)}
        """
        for name, count, limit in (("rows", rows, out_features), ("columns", columns, in_features)):
            if count is not None and not 0 <= count <= limit:
                raise ValueError(f"{name} is {count}: from 0 to {limit}")
        height, width = (out_features if rows is None else rows), (in_features if columns is None else columns)
        core = torch.empty(height, width, dtype=dtype, device=device)
        written = None if rows is None else torch.arange(rows, device="cpu")
        read = None if columns is None else torch.arange(columns, device="cpu")
        layer = cls(core, in_features, out_features, written, read, core.new_empty(out_features) if bias else None)
        layer.order = None if layer.order is None else layer.order.to(core.device)
        layer.columns = None if layer.columns is None else layer.columns.to(core.device)
        return layer

    @classmethod
    def sizes_in(cls, spec: Mapping[str, Any], m: int, n: int) -> dict[str, Any]:
        most = {"rows": m, "columns": n}
        return {name: None if spec[name] is None else whole(spec, name, most=most[name]) for name in most}

    def own_sizes(self) -> dict[str, Any]:
        height, width = self.core.shape
        return {
            "rows": None if self.order is None else height,
            "columns": None if self.columns is None else width,
        }

    @property
    def weight(self) -> Tensor:  # (m, n)
        """The dense matrix, zero outside the rows and columns."""
        W: Tensor = self.core
        if self.columns is not None:
            W = W.new_zeros(len(W), self.in_features).index_copy(1, self.columns.long(), W)
        return W if self.order is None else F.pad(W, (0, 0, 0, 1)).index_select(0, self.order)

    def forward(self, x: Tensor) -> Tensor:  # (..., n) -> (..., m)
        """A gather of the inputs, one product, and a gather that puts the outputs in their places."""
        if self.columns is not None:
            x = picked(x, self.columns)
        if self.order is None:
            return F.linear(x, self.core, self.bias)
        y = picked(F.pad(F.linear(x, self.core), (0, 1)), self.order)
        return y if self.bias is None else y + self.bias


def _places(name: str, index: Tensor | None, count: int, limit: int) -> Tensor | None:
    """Positions checked to be `count` distinct ones below `limit`; None is all of them."""
    if index is None:
        if count != limit:
            raise ValueError(f"{name}: the core has {count} of {limit}; say which ones they are")
        return None
    index = index.long()
    fits = index.shape == (count,) and (count == 0 or 0 <= int(index.min()) <= int(index.max()) < limit)
    if not fits or len(index.unique()) != count:
        raise ValueError(f"{name} must be {count} distinct positions below {limit}, got {index.tolist()}")
    return index
