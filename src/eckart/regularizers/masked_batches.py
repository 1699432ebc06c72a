"""Batches for masked training: drawn from one tensor or read from an iterable, and which of their items may be hidden.

Paper: none.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from eckart.regularizers.masked_kinds import Kind


def maskable_items(
    x: Tensor,  # (N, T), or (N, T, d)
    kind: Kind,
    keep_ids: Sequence[int] = (),
) -> Tensor:  # (N, T) bool
    """Which items of a batch may be hidden: all but tokens that are to be kept.

    Raises:
        ValueError: the batch has not the shape or the dtype of its kind.

    Example:
        >>> maskable_items(torch.tensor([[5, 7, 0]]), "tokens", keep_ids=[0])
        tensor([[ True,  True, False]])
    """
    shapes = {"vector": (2, 3), "patches": (3,), "tokens": (2,)}[kind]
    if x.ndim not in shapes or x.is_floating_point() == (kind == "tokens"):
        what = {"vector": "floats (N, T) or (N, T, d)", "patches": "floats (N, P, d)", "tokens": "ids (N, T)"}[kind]
        raise ValueError(f"data for kind={kind!r} must be {what}, got {x.dtype} {tuple(x.shape)}")
    may_hide = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    for kept in keep_ids:
        may_hide &= x != kept
    return may_hide


def endless_batches(
    data: Tensor | Iterable[Any],
    kind: Kind,
    keep_ids: Sequence[int],
    device: torch.device,
    batch_size: int,
    generator: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches on the device and what may be hidden of them, without end; data are looked at before they are moved.

    Raises:
        ValueError: as `maskable_items`; entries that are not finite; a sample has no item that may be hidden; an
            iterable has come to its end.
        TypeError: a batch holds no tensor.

    Example:
        >>> data = [torch.ones(2, 3), torch.zeros(2, 3)]
        >>> batches = endless_batches(data, "vector", (), torch.device("cpu"), 2, torch.Generator())
        >>> [next(batches)[0][0, 0].item() for _ in range(4)]
        [1.0, 0.0, 1.0, 0.0]
    """
    if isinstance(data, Tensor):
        may_hide = _require_usable(data, maskable_items(data, kind, keep_ids)).to(device)
        data = data.to(device)
        while True:
            index = torch.randint(len(data), (batch_size,), generator=generator, device=generator.device).to(device)
            yield data[index], may_hide[index]
    while True:
        empty = True
        for batch in data:
            empty = False
            x = batch[0] if isinstance(batch, tuple | list) and batch else batch
            if not isinstance(x, Tensor):
                raise TypeError(
                    f"data gave a batch of {type(x).__name__}; a batch is a tensor, or a tuple that begins with one: "
                    f'of a dict, give (batch["input_ids"] for batch in loader) as a list'
                )
            may_hide = maskable_items(x, kind, keep_ids)
            if x.device.type == "cpu":  # elsewhere looking would wait for the device
                _require_usable(x, may_hide)
            yield x.to(device, non_blocking=True), may_hide.to(device, non_blocking=True)
        if empty:
            raise ValueError("data gave no batch: an iterator that was read once stays empty; give a list or a loader")


def _require_usable(x: Tensor, may_hide: Tensor) -> Tensor:
    """`may_hide`, after checking that x is finite and each of its samples has an item that may be hidden."""
    if not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).sum())
        raise ValueError(f"data {tuple(x.shape)} have {bad} entries that are NaN or infinite; repair or leave them out")
    empty = ~may_hide.any(1)
    if not len(may_hide) or bool(empty.any()):
        raise ValueError(
            f"data {tuple(may_hide.shape)}: {int(empty.sum())} of {len(may_hide)} samples have no item that may be "
            f"hidden; leave such samples out, or check keep_ids"
        )
    return may_hide
