"""Run a model block by block: what its first block is given is kept, and every block is then fed by the one before.

A chain is a list of modules inside a model (the layers of a transformer, the children of an nn.Sequential) that run
once each and in order in every forward pass, each one's first argument being what the one before gave. Whatever else a
block is given (masks, positions) is kept as it was in the model's own pass. So a layer's inputs can be seen, and its
successors' inputs recomputed after it has changed, at the cost of one pass over all batches, whatever the depth.

Memory: the hidden states of all batches, once, beside the model.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eckart.nn.batches import run_model, to_device
from eckart.nn.modes import evaluating

Forward = Callable[[nn.Module, Any], Any]


@dataclass
class Call:
    """What a block is given beside its hidden states, in one batch."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Enough(Exception):  # noqa: N818 - no error: it ends a pass
    """The part of a pass that was wanted is over."""


class Chain:
    """The blocks of a model, and how each was called in every batch.

    Args:
        model: The model; it is run in evaluation mode, without gradients.
        names: The dotted paths of its blocks, in order (see `find_chain`).
        batches: What to run it on; read once.
        forward: (model, batch) → output; None feeds the batch as `run_model` does.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> chain = Chain(model, ["0", "1", "2"], [torch.ones(4, 2)])
        >>> x = chain.hidden[0]
        >>> for block in range(3):
        ...     x = chain.run(block, 0, x)
        >>> torch.equal(x, model(torch.ones(4, 2)))
        True
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], batches: Iterable[Any], forward: Forward | None = None
    ) -> None:
        self.model, self.names = model, list(names)
        self.batches: list[Any] = []  # as the model takes them, for their masks
        self.hidden: list[Tensor] = []  # what the first block is given, batch by batch
        self._calls: list[list[Call]] = []  # batch → block → call, or one call where all blocks are called alike
        alike: set[Any] = set()  # the forms of the first block's calls with which all blocks were called alike
        device = next(model.parameters()).device
        run = forward or run_model
        for batch in batches:
            batch = to_device(batch, device)
            seen = record(model, self.names[:1], batch, run) if alike else None
            if seen is None or _form(*seen) not in alike:
                seen = record(model, self.names, batch, run)
            if seen is None:
                raise ValueError(f"the blocks {self.names[0]} … {self.names[-1]} do not run once each and in order")
            hidden, calls = seen
            self.batches.append(batch)
            self.hidden.append(hidden)
            if _all_alike(calls):  # as one call alone is
                alike.add(_form(hidden, calls))
                calls = calls[:1]
            self._calls.append(calls)
        if not self.batches:
            raise ValueError("batches is empty: give at least one batch (an iterator that was read once stays empty)")

    def block(self, index: int) -> nn.Module:
        """The module that is the block now."""
        return self.model.get_submodule(self.names[index])

    @torch.no_grad()
    def run(self, block: int, batch: int, hidden: Tensor, module: nn.Module | None = None) -> Tensor:
        """What a block makes of hidden states, called as in that batch.

        Args:
            block: Which block.
            batch: Which batch.
            hidden: Its hidden states.
            module: What to run in the block's place; None is the block.
        """
        calls = self._calls[batch]
        call = calls[block if len(calls) > 1 else 0]
        module = self.block(block) if module is None else module
        with evaluating(module):
            return _first(module(hidden.clone(), *call.args, **call.kwargs))  # a block may write into what it is given


def find_chain(model: nn.Module, batch: Any, forward: Forward | None = None) -> list[str] | None:
    """The names of the blocks in which most of a model's parameters are, or None if it has no chain of blocks.

    Args:
        model: Any module.
        batch: One batch, on which the model is run to see that the blocks are called in order.
        forward: As for `Chain`.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 2)))
        >>> find_chain(model, torch.ones(1, 2))
        ['0', '1']
    """
    lists = {
        path: module for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1
    }  # fmt: skip
    sizes = {path: sum(p.numel() for p in module.parameters()) for path, module in lists.items()}
    total = sum(parameter.numel() for parameter in model.parameters())
    batch = to_device(batch, next(model.parameters()).device)
    for path in sorted(lists, key=lambda each: -sizes[each]):
        if 4 * sizes[path] < total:
            return None
        names = [f"{path}.{child}".lstrip(".") for child, _ in lists[path].named_children()]
        if record(model, names, batch, forward or run_model) is not None:
            return names
    return None


def record(model: nn.Module, names: Sequence[str], batch: Any, run: Forward) -> tuple[Tensor, list[Call]] | None:
    """Run a model as far as the last of the named blocks; what the first is fed, and how each is called.

    None if they do not run once each, in order, each on what the one before gave.
    """
    calls: list[Call] = []
    hidden: list[Tensor] = []
    expected: list[Any] = [None]
    wrong: list[bool] = []

    def before(index: int) -> Callable:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            fed = args[0] if args else None
            follows = index == 0 or fed is expected[0]
            if len(calls) != index or not isinstance(fed, Tensor) or not follows:
                wrong.append(True)
                raise Enough
            calls.append(Call(tuple(map(_kept, args[1:])), {name: _kept(value) for name, value in kwargs.items()}))
            if index == 0:
                hidden.append(fed.detach().clone())
            if len(names) == 1:
                raise Enough

        return hook

    def after(index: int) -> Callable:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            expected[0] = output[0] if isinstance(output, tuple | list) and output else output
            if index == len(names) - 1:
                raise Enough

        return hook

    blocks = [model.get_submodule(name) for name in names]
    hooks = [b.register_forward_pre_hook(before(i), with_kwargs=True) for i, b in enumerate(blocks)]
    hooks += [b.register_forward_hook(after(i)) for i, b in enumerate(blocks)]
    try:
        with torch.no_grad(), evaluating(model):
            run(model, batch)
    except Enough:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return (hidden[0], calls) if len(calls) == len(names) and not wrong else None


def _all_alike(calls: list[Call]) -> bool:
    """Whether every block is given the very same things."""
    first = calls[0]
    return all(
        len(call.args) == len(first.args)
        and call.kwargs.keys() == first.kwargs.keys()
        and all(a is b for a, b in zip(call.args, first.args, strict=True))
        and all(value is first.kwargs[name] for name, value in call.kwargs.items())
        for call in calls
    )


def _form(hidden: Tensor, calls: list[Call]) -> Any:
    """The first call's shape, and what in it is None: masks of blocks of other kinds are None alike in short text."""
    call = calls[0]
    nones = tuple(value is None for value in call.args), tuple((name, v is None) for name, v in call.kwargs.items())
    return hidden.shape, nones


def _kept(value: Any) -> Any:
    """What a block is given again when it runs alone; a cache of keys and values would grow with every run."""
    return None if hasattr(value, "update") and hasattr(value, "get_seq_length") else value


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple | list) else output
