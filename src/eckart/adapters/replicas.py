"""Whether a model is trained by several processes in a way that fixes the shapes of its parameters.

DDP packs gradients into buckets, and FSDP shards parameters, once, when they are built: a parameter that is another
object or has another shape later is not reduced, or breaks the step.

Paper: none.
"""

import gc

from torch import distributed, nn


def refuse_replicas(model: nn.Module, verb: str) -> None:
    """Raise a RuntimeError where DDP or FSDP holds the model's parameters.

    A DistributedDataParallel is found also where the model is inside of it and does not know: while a process group is
    up, Python's live objects are searched for one that holds the model's parameters (about 0.1 s).
    """
    holder = _holder(model)
    if holder is not None:
        raise RuntimeError(
            f"model: it is under {holder}, whose buckets and shards are fixed when it is built, so {verb} cannot give "
            f"its parameters other shapes. Save the adapter, {verb} it on the plain model, and wrap that again"
        )


def _holder(model: nn.Module) -> str | None:
    for module in model.modules():
        for kind in type(module).__mro__:
            if kind.__module__.startswith("torch.") and kind.__name__ in NAMES:
                return kind.__name__
    if any(type(parameter).__name__ == "DTensor" for parameter in model.parameters()):
        return "FSDP or tensor parallelism (its parameters are DTensors)"
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    mine = {id(parameter) for parameter in model.parameters()}
    for thing in gc.get_objects():
        if issubclass(type(thing), nn.parallel.DistributedDataParallel) and any(
            id(parameter) in mine for parameter in thing.parameters()
        ):
            return "DistributedDataParallel"
    return None


NAMES = ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule")
