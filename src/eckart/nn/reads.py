"""Who reads what: a torch function mode that sees each product of an input with a weight of the model.

It looks at the functions that multiply (linear, addmm, matmul, convolutions, grouped_mm, embedding) and at the storage
of the weight that they are given, not at modules: so it sees a tied head, the packed projection of
`nn.MultiheadAttention`, transformers' Conv1D and the experts of a 3-D parameter in the same way, padding modes of
convolutions as they come out, and a layer that is called twice or not at all.
"""

import types
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from eckart.nn.batches import Padding
from eckart.nn.matrices import Matrix
from eckart.nn.patches import patches, positions
from eckart.nn.storage import Weights


@dataclass(frozen=True)
class Read:
    """One product of a matrix, or of some matrices of a stack, with rows of an input."""

    matrix: Matrix
    x: Tensor  # the input; rows are cut out of it
    slots: slice  # which matrices of the stack
    count: int  # rows that each of them reads, padding left out
    cut: Hashable  # how the rows are cut out of x
    rows: Callable[[], Iterable[Tensor]] | None  # -> chunks (slots, N, n); None for an embedding, which reads ids
    output_rows: Callable[[Tensor], Tensor] | None  # the output's gradient -> (slots, count, m)


class Reads(TorchFunctionMode):
    """While active, hands every product with an observed weight to `on_read(reads, output)`, which gives the output.

    `begin_batch` comes before each batch. `whole` collects the names of matrices whose rows were all counted although
    the batch is padded, since their inputs could not be matched to the mask, and `unread` the shapes of unknown masks.
    """

    def __init__(
        self, weights: Weights, on_read: Callable[[list[Read], Tensor], Tensor], encoder_decoder: bool = False
    ) -> None:
        super().__init__()
        self._encoder_decoder = encoder_decoder
        self.weights, self.on_read = weights, on_read
        self.whole: set[str] = set()
        self.unread: set[tuple[int, ...]] = set()
        self.padding = Padding(None)

    def begin_batch(self, batch: Any) -> None:
        """Read the padding of the batch to come."""
        self.padding = Padding(batch, self._encoder_decoder)
        self.unread.update(self.padding.unread)

    def __torch_function__(
        self, func: Callable, types: Iterable[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return _opened_attention(*args, **kwargs)
        out = func(*args, **kwargs)
        find = _FINDERS.get(func)
        reads = find(self, out, *args, **kwargs) if find is not None else []
        return self.on_read(reads, out) if reads else out

    def product(self, matrix: Matrix, slots: slice, x: Tensor) -> Read:  # x (..., n)
        """The read of a plain product, rows by the last dimension."""
        shape, padding = tuple(x.shape), self.padding
        if matrix.kind == "experts" and (kept := padding.gathered(len(x))) is not None:
            return self._selected(matrix, slots, x, kept, len(kept), "rows")
        if padding.misses(shape):
            self.whole.add(matrix.name)
        count = padding.count(shape)
        return Read(matrix, x, slots, count, "rows", lambda: [padding.rows(x)[None]], lambda g: padding.rows(g)[None])

    def convolution(
        self,
        matrix: Matrix,
        slots: slice,
        x: Tensor,
        out: Tensor,
        kernel: Iterable[int],
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int = 1,
    ) -> Read:
        """The read of a convolution, rows by its positions."""
        if self.padding.hides:
            self.whole.add(matrix.name)
        kernel = tuple(kernel)
        geometry = (kernel, stride, padding, dilation, groups)
        count = out.numel() // (matrix.shape[0] * groups)
        return Read(
            matrix, x, slots, count, str(geometry),
            lambda: patches(x, *geometry),
            lambda g: positions(g, len(kernel), groups),
        )  # fmt: skip

    def _selected(
        self, matrix: Matrix, slots: slice, x: Tensor, kept: Tensor | slice, count: int, cut: Hashable
    ) -> Read:
        return Read(matrix, x, slots, count, cut, lambda: [x[kept][None]], lambda g: g[kept][None])

    def _linear(self, out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> list[Read]:
        found = self.weights.find(weight)
        return [self.product(*found, input)] if found else []

    def _addmm(self, out: Tensor, input: Tensor, mat1: Tensor, mat2: Tensor, **scales: Any) -> list[Read]:
        return self._matmul(out, mat1, mat2)

    def _matmul(self, out: Tensor, input: Tensor, other: Tensor | None = None, **named: Any) -> list[Read]:
        other = named.get("mat2") if other is None else other
        if not isinstance(other, Tensor) or other.ndim not in (2, 3):
            return []
        return self._linear(out, input, other.mT) if other.ndim == 2 else self._batched(input, other.mT)

    def _batched(self, x: Tensor, V: Tensor) -> list[Read]:  # (stack or 1, N, n), (stack, m, n)
        found = self.weights.find(V)
        if not found:
            return []
        if self.padding.hides:
            self.whole.add(found[0].name)
        rows = x.expand(len(V), -1, -1)
        return [Read(found[0], x, found[1], rows.shape[1], "rows", lambda: [rows], lambda g: g)]

    def _convolution(
        self,
        out: Tensor,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> list[Read]:
        geometry = (weight.shape[2:], stride, padding, dilation, groups)
        found = self.weights.find(weight)
        return [self.convolution(*found, input, out, *geometry)] if found else []

    def _grouped(self, out: Tensor, mat_a: Tensor, mat_b: Tensor, offs: Tensor | None = None, **_: Any) -> list[Read]:
        found = self.weights.find(mat_b.mT) if mat_a.ndim == 2 and mat_b.ndim == 3 and offs is not None else None
        if not found or offs is None:
            return []
        kept = self.padding.gathered(len(mat_a))
        if kept is None and self.padding.hides:
            self.whole.add(found[0].name)
        reads, start = [], 0
        for expert, stop in enumerate(offs.tolist()):
            mine = slice(start, stop) if kept is None else kept[(kept >= start) & (kept < stop)]
            count = stop - start if isinstance(mine, slice) else len(mine)
            slot = slice(expert, expert + 1)
            reads.append(self._selected(found[0], slot, mat_a, mine, count, ("rows", start, stop)))
            start = stop
        return reads

    def _embedding(self, out: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> list[Read]:
        found = self.weights.find(weight)
        if not found:
            return []
        count = self.padding.count((*input.shape, 1))
        return [Read(found[0], input, found[1], count, "ids", None, None)]

    def _gather(self, out: Tensor, x: Tensor, index: Any) -> list[Read]:
        self.padding.gather(x, index)
        return []


def _open(function: Callable) -> Callable:
    """A copy of a composite function of torch whose inner products a mode still sees.

    torch hands the whole function to the mode, and would do so again when the mode calls it; the copy goes on instead.
    """
    names = {**function.__globals__, "has_torch_function": lambda _: False}
    copy = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_opened_attention = _open(F.multi_head_attention_forward)

_FINDERS: dict[Callable, Callable[..., list[Read]]] = {
    F.linear: Reads._linear,
    **dict.fromkeys((torch.addmm, Tensor.addmm), Reads._addmm),
    **dict.fromkeys((torch.mm, torch.bmm, torch.matmul), Reads._matmul),
    **dict.fromkeys((Tensor.mm, Tensor.bmm, Tensor.matmul, Tensor.__matmul__), Reads._matmul),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), Reads._convolution),
    torch._grouped_mm: Reads._grouped,
    **dict.fromkeys((F.embedding, F.embedding_bag), Reads._embedding),
    Tensor.__getitem__: Reads._gather,
}
