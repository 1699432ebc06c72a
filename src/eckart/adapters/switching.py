"""Which adapters act: switch, add up, disable. The base weights are not touched, so a switch costs nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from eckart.adapters.place import Place, places
from eckart.adapters.saved_modules import saved_modules
from eckart.nn.patterns import closest


def names(model: nn.Module) -> list[str]:
    """The adapters that a model has.

    Example:
        >>> names(nn.Sequential(nn.Linear(2, 2)))
        []
    """
    return list(dict.fromkeys(name for place in places(model).values() for name in place.adapters))


def activate(model: nn.Module, *adapters: str) -> None:
    """Let these adapters act, added up where a matrix has several, and no others; their parameters train.

    Args:
        model: A model with adapters.
        adapters: Names; none at all disables all.

    Raises:
        ValueError: The model has no adapter of that name, or two would act on one matrix of which one
            trained the magnitude, or on one module that both trained whole.
    """
    known = names(model)
    for adapter in adapters:
        if adapter not in known:
            raise ValueError(f"adapters: the model has no {adapter!r}; closest: {closest(adapter, known, whole=True)}")
    held = places(model).values()
    for place in held:
        _check_magnitudes(place, adapters)
    _check_copies(model, adapters)
    for saved in saved_modules(model).values():
        saved.activate(adapters)
    for place in held:
        place.active = tuple(name for name in adapters if name in place.adapters)
        for name, module in place.adapters.items():
            made: Any = module
            trained = {id(p) for p in made.trained()} if name in place.active else set()
            for parameter in made.parameters():
                parameter.requires_grad_(id(parameter) in trained)


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """The model as it was before any adapter, bit for bit, for the length of a `with` block."""
    before = {place: place.active for place in places(model).values()}
    copies = {module: module.active for module in saved_modules(model).values()}
    try:
        for module in copies:
            module.active = None
        for place in before:
            place.active = ()
        yield model
    finally:
        for place, active in before.items():
            place.active = active
        for module, copy in copies.items():
            module.active = copy


def _check_magnitudes(place: Place, adapters: tuple[str, ...]) -> None:
    live = [name for name in adapters if name in place.adapters and place.adapters[name].magnitude is not None]
    if len(live) > 1 or (live and sum(name in place.adapters for name in adapters) > 1):
        raise ValueError(
            f"adapters: {', '.join(live)} trained a magnitude of {place.name}, which cannot be added to another "
            "adapter; activate it alone"
        )


def _check_copies(model: nn.Module, adapters: tuple[str, ...]) -> None:
    for name, module in saved_modules(model).items():
        holders = [adapter for adapter in adapters if adapter in module.copies]
        if len(holders) > 1:
            raise ValueError(f"adapters: {' and '.join(holders)} each trained {name} whole; activate one of them")
