"""Batches as models take them: moved to a device, fed to the model, and their padded positions known."""

from collections.abc import Hashable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn


def to_device(batch: Any, device: torch.device, _moved: dict[int, Tensor] | None = None) -> Any:
    """Move every tensor of a batch, through mappings, tuples and lists, detached from any graph.

    A tensor that occurs twice stays one tensor: attention treats a query that is its key as self-attention.

    Example:
        >>> to_device({"ids": [torch.ones(2)], "name": "a"}, torch.device("cpu"))
        {'ids': [tensor([1., 1.])], 'name': 'a'}
    """
    done = {} if _moved is None else _moved
    if isinstance(batch, Tensor):
        return done.setdefault(id(batch), batch.detach().to(device))
    if isinstance(batch, Mapping):
        return {name: to_device(value, device, done) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        moved = [to_device(value, device, done) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch


def run_model(model: nn.Module, batch: Any) -> Any:
    """Call the model on a batch: a mapping by keyword, a tuple or list by position, a tensor alone.

    Raises:
        TypeError: the batch is none of these.

    Example:
        >>> run_model(nn.Identity(), (torch.ones(2),))
        tensor([1., 1.])
    """
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch)
    if isinstance(batch, Tensor):
        return model(batch)
    raise TypeError(
        f"a batch is a dict, a tuple, a list or a tensor, not {type(batch).__name__}; `forward` can run other batches"
    )


_SIDES = (  # each a mask (B, T), and else what has the same shape in front and no padding that can be told
    ("attention_mask", "input_ids", "inputs_embeds"),
    ("decoder_attention_mask", "decoder_input_ids", "decoder_inputs_embeds"),
    ("encoder_attention_mask", "encoder_hidden_states"),
)


class Padding:
    """Which rows of a batch's tensors are real, from its masks (B, T): 0 is padding.

    An encoder and a decoder have a mask each, told apart by T. Where T is the same and the masks are not, nothing is
    left out, and `misses` says so.

    Args:
        batch: any batch; only a mapping can hold masks.
        encoder_decoder: whether the model gives its `labels` to a decoder of its own.

    Example:
        >>> padding = Padding({"attention_mask": torch.tensor([[1, 1, 0]])})
        >>> padding.rows(torch.arange(3.0).view(1, 3, 1)), padding.count((1, 3, 8))
        (tensor([[0.],
                [1.]]), 2)
    """

    def __init__(self, batch: Any, encoder_decoder: bool = False) -> None:
        self.unread: list[tuple[int, ...]] = []  # the shapes of masks that are not (B, T)
        self._real: dict[tuple[int, ...], Tensor | None] = {}  # (B, T) -> which of B · T positions are; None: all
        self._unclear: set[tuple[int, ...]] = set()
        self._gathered: Tensor | None = None  # of the rows last picked out of B · T ones: whether each is real
        for mask, *others in _SIDES if isinstance(batch, Mapping) else ():
            if encoder_decoder and mask.startswith("decoder"):
                others.append("labels")
            given = next((name for name in (mask, *others) if isinstance(batch.get(name), Tensor)), None)
            if given is not None:
                self._add(batch[given], given == mask)
        self._positions = {side: r.nonzero().flatten() for side, r in self._real.items() if r is not None}
        self.hides = bool(self._positions or self._unclear)  # whether anything is padding

    def _add(self, tensor: Tensor, is_mask: bool) -> None:
        if is_mask and tensor.ndim != 2:
            self.unread.append(tuple(tensor.shape))
        elif tensor.ndim >= 2:
            side, real = tuple(tensor.shape[:2]), (tensor != 0).flatten() if is_mask else None
            real = None if real is None or bool(real.all()) else real
            if side in self._real and not _equal(self._real[side], real):
                self._unclear.add(side)
                real = None
            self._real[side] = real

    def _side(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:  # (..., n) -> (B, T)
        """The mask's shape if the leading dimensions are (B, T), or else B · T."""
        if len(shape) > 2 and tuple(shape[:2]) in self._real:
            return tuple(shape[:2])
        return next((side for side in self._real if len(shape) > 1 and shape[0] == prod(side)), None)

    def misses(self, shape: tuple[int, ...]) -> bool:  # (..., n)
        """Whether padded positions may hide in a tensor: no mask, or more than one, fits, nor one row per sequence."""
        side = self._side(shape)
        if side is not None:
            return side in self._unclear
        return self.hides and not (len(shape) == 2 and any(shape[0] == batch for batch, _ in self._real))

    def count(self, shape: tuple[int, ...]) -> int:  # (..., n)
        """How many real rows a tensor of this shape has."""
        side = self._side(shape)
        if side not in self._positions:
            return prod(shape[:-1])
        return prod(shape[:-1]) // prod(side) * len(self._positions[side])

    def rows(self, x: Tensor) -> Tensor:  # (..., n) -> (N, n)
        """The real rows of a tensor, in order."""
        n, side = x.shape[-1], self._side(tuple(x.shape))
        if side not in self._positions:
            return x.reshape(-1, n)
        return x.reshape(prod(side), -1, n).index_select(0, self._positions[side].to(x.device)).reshape(-1, n)

    def gather(self, x: Tensor, index: object) -> None:
        """Note that `x[index]` picks rows (as a router does for its experts), to know which of them are real."""
        real = next((r for side, r in self._real.items() if x.ndim == 2 and len(x) == prod(side)), None)
        if real is None or not isinstance(index, Tensor):
            return
        if index.ndim == 1 and index.dtype in (torch.int32, torch.int64):
            self._gathered = real.to(index.device)[index]

    def gathered(self, count: int) -> Tensor | None:
        """The real ones of the `count` rows picked last; None if so many were not picked, or nothing is padded."""
        if self._gathered is None or len(self._gathered) != count:
            return None
        return self._gathered.nonzero().flatten()


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


class Keys:
    """Random keys for the rows of one batch, the same for all matrices that read as many rows.

    So the samples of different matrices hold the same tokens.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self._drawn: dict[Hashable, Tensor] = {}

    def __call__(self, count: int, salt: Hashable = None) -> Tensor:  # (count,) float64
        """The keys of `count` rows; another salt gives other keys."""
        if (count, salt) not in self._drawn:
            self._drawn[count, salt] = torch.rand(
                count, generator=self.generator, dtype=torch.float64, device=self.generator.device
            )
        return self._drawn[count, salt]
