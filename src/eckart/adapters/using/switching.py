"""Which adapters act: switch, add up, disable, rename, remove. The base weights are not touched.

A switch sets one attribute of each place and the `requires_grad` of what acted before and what acts from now on: no
tensor is made, moved or copied, so optimizers and compiled references to the parameters stay right.
Cost: O(places); see `benchmarks/adapt_switching.py`.

Paper: none.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from eckart.adapters.adapter import Adapter
from eckart.adapters.changing.replicas import plain
from eckart.adapters.layers.adapted import AdaptedLayer
from eckart.adapters.layers.place import Place, places
from eckart.adapters.layers.saved_modules import SavedModule, saved_modules
from eckart.nn import replace
from eckart.nn.patterns import closest


def names(model: nn.Module) -> list[str]:
    """The adapters that a model has.

    Example:
        >>> names(nn.Sequential(nn.Linear(2, 2)))
        []
    """
    return _names(places(model))


def activate(model: nn.Module, *adapters: str) -> None:
    """Let these adapters act, added up where a matrix has several, and no others; their parameters train.

    Args:
        model: A model with adapters.
        adapters: Names; none at all disables all.

    Raises:
        ValueError: The model has no adapter of that name, or two would act on one matrix of which one
            trained the magnitude, or on one module that both trained whole.

    Example:
        >>> from eckart.adapters import adapt
        >>> model = nn.Sequential(nn.Linear(4, 4))
        >>> _ = adapt(model, rank=1, name="law"), adapt(model, rank=1, name="code")
        >>> activate(model, "law")
        >>> [key for key, p in model.named_parameters() if p.requires_grad]
        ['0.adapters.law.B', '0.adapters.law.A']
    """
    chosen = tuple(dict.fromkeys(adapters))
    held, saved = places(model), saved_modules(model)
    require_known(chosen, _names(held), "adapters")
    wanted = {place: tuple([name for name in chosen if name in place.held]) for place in held.values()}
    for place, active in wanted.items():
        check_magnitudes(place, active)
    check_copies(saved, chosen)
    for module in saved.values():
        module.activate(chosen)
    for place, active in wanted.items():
        for name in {*place.active, *active}:
            _let_train(place.held[name], name in active)
    let_act(wanted)


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """The model as it was before any adapter, bit for bit, for the length of a `with` block.

    Args:
        model: A model with adapters; what is active before the block is active after it.

    Example:
        >>> import torch
        >>> from eckart.adapters import adapt
        >>> layer = nn.Linear(4, 4)
        >>> model = nn.Sequential(layer)
        >>> _ = adapt(model, rank=1)
        >>> with disabled(model):
        ...     torch.equal(model(torch.ones(1, 4)), layer(torch.ones(1, 4)))
        True
    """
    before = {place: place.active for place in places(model).values()}
    copies = {module: module.active for module in saved_modules(model).values()}
    try:
        for module in copies:
            module.active = None
        let_act(dict.fromkeys(before, ()))
        yield model
    finally:
        let_act(before)
        for module, copy in copies.items():
            module.active = copy


def remove(model: nn.Module, name: str) -> None:
    """Take an adapter off the model; where it was a matrix's last, the layer itself is put back.

    What stays active is what was, less the one removed. Once the last adapter is gone the model has its own modules and
    values again; its parameters stay frozen, as `adapt` left them (`model.requires_grad_(True)` lets them train).

    Args:
        model: A model with adapters.
        name: The adapter.

    Raises:
        ValueError: The model has no adapter of that name (the message gives the closest).
        RuntimeError: The model is under DDP or FSDP.

    Example:
        >>> from eckart.adapters import adapt
        >>> model = nn.Sequential(nn.Linear(4, 4))
        >>> _ = adapt(model, rank=1, name="law")
        >>> remove(model, "law")
        >>> model[0]
        Linear(in_features=4, out_features=4, bias=True)
    """
    model = plain(model, "remove an adapter from")
    require_known((name,), names(model), "name")
    for place in places(model, name).values():
        take_off(model, place, name)
    for module in saved_modules(model, name).values():
        module.active = None if module.active == name else module.active
        del module.copies[name]
        if not module.copies:
            replace(model, module.name, module.original)


def take_off(model: nn.Module, place: Place, name: str) -> None:
    """Take an adapter off one matrix."""
    let_act({place: tuple(other for other in place.active if other != name)})
    del place.adapters[name]
    if not place.adapters:
        place.leave(model)


def rename(model: nn.Module, name: str, new: str) -> None:
    """Call an adapter something else; its parameters stay the same objects, so optimizers go on.

    Args:
        model: A model with adapters.
        name: The adapter.
        new: Its new name: letters, digits and underscores.

    Raises:
        ValueError: The model has no adapter `name`, or has one called `new`, or `new` is no name.

    Example:
        >>> from eckart.adapters import adapt
        >>> model = nn.Sequential(nn.Linear(4, 4))
        >>> _ = adapt(model, rank=1)
        >>> rename(model, "default", "law")
        >>> names(model), model[0].active
        (['law'], ('law',))
    """
    require_known((name,), names(model), "name")
    check_name(model, new, "new")
    for place in places(model, name).values():
        _rename(place.adapters, name, new)
        place.active = tuple(new if other == name else other for other in place.active)
    for module in saved_modules(model, name).values():
        _rename(module.copies, name, new)
        module.active = new if module.active == name else module.active


def check_name(model: nn.Module, name: str, argument: str = "name") -> None:
    """Refuse what cannot name one more adapter of the model."""
    if not name.isidentifier():
        raise ValueError(f"{argument}: {name!r} is no name for an adapter; give letters, digits and underscores")
    if hasattr(nn.ModuleDict(), name):
        raise ValueError(f"{argument}: {name!r} is what torch's modules call something of their own; give another name")
    if places(model, name):
        raise ValueError(
            f"{argument}: the model has an adapter {name!r} already; choose another name, or remove it first"
        )


def require_known(wanted: tuple[str, ...], known: list[str], argument: str) -> None:
    """Refuse names that the model has no adapter of."""
    if wanted and not known:
        raise ValueError(f"{argument}: the model has no adapters; put some on it with adapt or load")
    for name in wanted:
        if name not in known:
            raise ValueError(
                f"{argument}: the model has no adapter {name!r}; closest: {closest(name, known, whole=True)}"
            )


def _names(held: Mapping[str, Place]) -> list[str]:
    return list(dict.fromkeys(name for place in held.values() for name in place.held))


def let_act(wanted: Mapping[Place, tuple[str, ...]]) -> None:
    """Set what acts in some places; outputs that wait there for siblings are no longer right."""
    changed = [place for place, active in wanted.items() if place.active != active]
    for place in changed:
        place.__dict__["active"] = wanted[place]  # what nn.Module's setattr does in the end, ten times slower
    for siblings in {place.siblings for place in changed if isinstance(place, AdaptedLayer)}:
        siblings.switched()


def _let_train(adapter: Adapter, wanted: bool) -> None:
    for parameter in adapter.trained():
        if parameter.requires_grad is not wanted:
            parameter.requires_grad = wanted


def _rename(modules: nn.ModuleDict, name: str, new: str) -> None:
    """Keep the order."""
    renamed = {new if key == name else key: module for key, module in modules.items()}
    modules.clear()
    modules.update(renamed)


def check_magnitudes(place: Place, active: tuple[str, ...]) -> None:
    live = [name for name in active if place.held[name].magnitude is not None] if len(active) > 1 else []
    if live:
        raise ValueError(
            f"adapters: {', '.join(live)} trained a magnitude of {place.name}, which cannot be added to another "
            "adapter; activate it alone"
        )


def check_copies(saved: Mapping[str, SavedModule], adapters: tuple[str, ...]) -> None:
    for name, module in saved.items():
        holders = [adapter for adapter in adapters if adapter in module.copies]
        if len(holders) > 1:
            raise ValueError(f"adapters: {' and '.join(holders)} each trained {name} whole; activate one of them")
