"""Models inside of what trains them in several processes or compiles them, and what cannot be done to them there.

DDP packs gradients into buckets, and FSDP shards parameters, once, when they are built: a parameter that is another
object or has another shape later is not reduced, or breaks the step.

Paper: none.
"""

import gc
from collections.abc import Callable

from torch import distributed, nn

SHARDS = "FSDP or tensor parallelism (its parameters are DTensors)"
NAMES = ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile: its names are those that adapters go by.

    Example:
        >>> from torch import compile
        >>> model = nn.Linear(2, 2)
        >>> unwrapped(compile(model)) is model
        True
    """
    while True:
        inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else None
        inner = model._modules.get("_orig_mod", inner)
        if inner is None:
            return model
        model = inner


def refuse_replicas(model: nn.Module, verb: str) -> None:
    """Raise a RuntimeError where DDP or FSDP holds the model's parameters.

    A DistributedDataParallel is found also where the model is inside of it and does not know: while a process group is
    up, Python's live objects are searched for one that holds the model's parameters (about 0.1 s).
    """
    holder = _wrapper(model) or _hidden(model)
    if holder is not None:
        raise RuntimeError(
            f"model: it is under {holder}, whose buckets and shards are fixed when it is built, so {verb} cannot give "
            f"its parameters other shapes. Save the adapter, {verb} it on the plain model, and wrap that again"
        )


def plain(model: nn.Module, verb: str) -> nn.Module:
    """`unwrapped`, where parameters may come and go: a RuntimeError where FSDP shards them, or DDP is given itself."""
    holder = _wrapper(model)
    if holder is not None:
        raise RuntimeError(
            f"model: it is under {holder}, which knows the parameters that it was built with and no others; {verb} the "
            "plain model, then wrap it"
        )
    return unwrapped(model)


def by_first(model: nn.Module, action: Callable[[], None]) -> None:
    """Act; where FSDP shards the model, in the first process alone: the others wait for it, and fail as it does."""
    running = distributed.is_available() and distributed.is_initialized()
    if not running or _wrapper(model) in (None, NAMES[0]):
        action()
        return
    failed: list[Exception | None] = [None]
    if distributed.get_rank() == 0:
        try:
            action()
        except Exception as error:
            failed = [error]
    distributed.broadcast_object_list(failed)
    if failed[0] is not None:
        raise failed[0]


def _wrapper(model: nn.Module) -> str | None:
    """What DDP or FSDP there is in the model itself."""
    for module in model.modules():
        for kind in type(module).__mro__:
            if kind.__module__.startswith("torch.") and kind.__name__ in NAMES:
                return kind.__name__
    if any(type(parameter).__name__ == "DTensor" for parameter in model.parameters()):
        return SHARDS
    return None


def _hidden(model: nn.Module) -> str | None:
    """A DDP around the model."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    mine = {id(parameter) for parameter in model.parameters()}
    for thing in gc.get_objects():
        if issubclass(type(thing), nn.parallel.DistributedDataParallel) and any(
            id(parameter) in mine for parameter in thing.parameters()
        ):
            return "DistributedDataParallel"
    return None
