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


class Padding:
    """Which rows of a batch's tensors are real, from its `attention_mask` (B, T): 0 is padding.

    Args:
        batch: any batch; only a mapping can hold a mask.

    Example:
        >>> padding = Padding({"attention_mask": torch.tensor([[1, 1, 0]])})
        >>> padding.rows(torch.arange(3.0).view(1, 3, 1)), padding.count((1, 3, 8))
        (tensor([[0.],
                [1.]]), 2)
    """

    def __init__(self, batch: Any) -> None:
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        self.shape: tuple[int, ...] | None = None  # None: every row is real
        self.real: Tensor | None = None  # positions in B · T
        self.unread: tuple[int, ...] | None = None  # the shape of a mask that is not (B, T)
        self._gathered: Tensor | None = None  # of the rows last picked out of B · T ones: whether each is real
        self._is_real: Tensor | None = None
        if isinstance(mask, Tensor) and mask.ndim == 2 and not bool((mask != 0).all()):
            self.shape = tuple(mask.shape)
            self._is_real = (mask != 0).flatten()
            self.real = self._is_real.nonzero().flatten()
        elif isinstance(mask, Tensor) and mask.ndim != 2:
            self.unread = tuple(mask.shape)

    def applies(self, shape: tuple[int, ...]) -> bool:  # (..., n)
        """Whether the leading dimensions are (B, T) or B · T, and some of it is padding."""
        if self.shape is None:
            return False
        by_position = len(shape) > 2 and tuple(shape[:2]) == self.shape
        return by_position or (len(shape) > 1 and shape[0] == prod(self.shape))

    def misses(self, shape: tuple[int, ...]) -> bool:  # (..., n)
        """Whether padded positions may hide in a tensor: it is neither by position nor one row per sequence."""
        return (
            self.shape is not None and not self.applies(shape) and not (len(shape) == 2 and shape[0] == self.shape[0])
        )

    def count(self, shape: tuple[int, ...]) -> int:  # (..., n)
        """How many real rows a tensor of this shape has."""
        if self.shape is None or self.real is None or not self.applies(shape):
            return prod(shape[:-1])
        return prod(shape[:-1]) // prod(self.shape) * len(self.real)

    def rows(self, x: Tensor) -> Tensor:  # (..., n) -> (N, n)
        """The real rows of a tensor, in order."""
        n = x.shape[-1]
        if self.shape is None or self.real is None or not self.applies(tuple(x.shape)):
            return x.reshape(-1, n)
        return x.reshape(prod(self.shape), -1, n).index_select(0, self.real.to(x.device)).reshape(-1, n)

    def gather(self, x: Tensor, index: object) -> None:
        """Note that `x[index]` picks rows (as a router does for its experts), to know which of them are real."""
        if self._is_real is None or x.ndim != 2 or len(x) != len(self._is_real):
            return
        if isinstance(index, Tensor) and index.ndim == 1 and index.dtype in (torch.int32, torch.int64):
            self._gathered = self._is_real.to(index.device)[index]

    def gathered(self, count: int) -> Tensor | None:
        """The real ones of the `count` rows picked last; None if so many were not picked, or nothing is padded."""
        if self._gathered is None or len(self._gathered) != count:
            return None
        return self._gathered.nonzero().flatten()


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
