"""Modules that an adapter trains whole, such as a new head: one copy for each adapter, the original untouched.

y = f_θ(x) with θ of the active adapter, or the base's θ₀ where none is active: a switch changes which copy is called.
Cost: as many parameters as the module has, for each adapter.
Paper: none; PEFT calls them modules_to_save.
"""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

from torch import nn

from eckart.adapters.layers.place import Place, outer_modules
from eckart.nn import Patterns, replace, select
from eckart.nn.patterns import closest


class SavedModule(nn.Module):
    """A module in the place of one that adapters train whole, which it keeps as `original`.

    Attributes that it has not are those of the module that acts.

    Args:
        name: The module's path before anything was adapted.
        original: The module.

    Example:
        >>> held = SavedModule("head", nn.Linear(3, 2))
        >>> held.add("default")
        >>> held.acting() is held.original, held.in_features
        (True, 3)
    """

    original: nn.Module
    changes_weight = False  # for `nn.matrices`: the module that acts has its own

    def __init__(self, name: str, original: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.original = original
        self.copies = nn.ModuleDict()
        self.active: str | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.acting(), name)

    @property
    def acts_through(self) -> str:
        """Where, below this module, the one that acts is."""
        return "original" if self.active is None else f"copies.{self.active}"

    def acting(self) -> nn.Module:
        """The copy of the active adapter, or the original."""
        active = self.__dict__.get("active")
        modules = self.__dict__["_modules"]
        return modules["original"] if active is None else modules["copies"][active]

    def add(self, adapter: str) -> None:
        """Give an adapter its copy, not active yet."""
        if adapter in self.copies:
            raise ValueError(f"name: {self.name} has a copy for {adapter!r} already; choose another name")
        self.copies[adapter] = deepcopy(self.original).requires_grad_(False)

    def activate(self, adapters: tuple[str, ...]) -> None:
        """Let the copy of the one of these adapters that has one act and train; the original where none has."""
        self.active = next((adapter for adapter in adapters if adapter in self.copies), None)
        for adapter, copy in self.copies.items():
            copy.requires_grad_(adapter == self.active)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the acting module gives."""
        return self.acting()(*args, **kwargs)

    def extra_repr(self) -> str:
        return f"{self.name}, active={self.active or 'none'}"


def saved_modules(model: nn.Module, adapter: str | None = None) -> dict[str, SavedModule]:
    """The modules that adapters train whole.

    Args:
        model: The model.
        adapter: Only those of which this adapter has a copy; None for all.

    Returns:
        Module name → SavedModule.
    """
    found = {module.name: module for module in outer_modules(model) if isinstance(module, SavedModule)}
    return {name: module for name, module in found.items() if adapter is None or adapter in module.copies}


def modules_before(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules under the names that they had before anything was adapted, shared ones under each of their names."""

    def walk(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if isinstance(module, SavedModule):
            module = module.original
        elif isinstance(module, Place) and isinstance(getattr(module, "base", None), nn.Module):
            module = module.base  # type: ignore[assignment]
        yield path, module
        for name, child in module._modules.items():
            if child is not None and name != "parametrizations":
                yield from walk(f"{path}.{name}" if path else name, child)

    yield from walk("", model)


def chosen_modules(model: nn.Module, patterns: Patterns) -> tuple[str, ...]:
    """The names of the modules that an adapter is to train whole, checked.

    Args:
        model: The model, with or without adapters.
        patterns: Glob patterns of module names (see `nn.select`); None or empty for none.

    Returns:
        Names; of nested modules the outermost.

    Raises:
        ValueError: A pattern matches nothing, a module has adapters in it, has no parameters, or shares one with
            another place (a tied weight): a copy would end the sharing.
    """
    if not patterns:
        return ()
    modules = {name: module for name, module in modules_before(model) if name}
    try:
        matched = select(modules, patterns)
    except ValueError as error:
        raise ValueError(str(error).replace("targets:", "modules_to_save:", 1)) from None
    names = tuple(name for name in matched if not any(name.startswith(f"{other}.") for other in matched))
    check_modules(model, names)
    return names


def check_modules(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse modules that an adapter cannot train whole, as `chosen_modules` says."""
    modules = dict(modules_before(model))
    for name in names:
        if name not in modules:
            raise ValueError(
                f"modules_to_save: the model has no {name!r}; closest: {closest(name, modules, whole=True)}"
            )
        _check(model, name, modules)


def add_copies(model: nn.Module, names: tuple[str, ...], adapter: str) -> None:
    """Give the adapter its copy of each of these modules, wrapping those that have none yet."""
    held = saved_modules(model)
    for name in names:
        if name not in held:
            held[name] = SavedModule(name, model.get_submodule(name))
            replace(model, name, held[name])
        held[name].add(adapter)


def inside(name: str, modules: tuple[str, ...]) -> bool:
    """Whether a name is one of these modules or of a part of one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _check(model: nn.Module, name: str, modules: dict[str, nn.Module]) -> None:
    own = {id(parameter) for parameter in modules[name].parameters()}
    if not own:
        raise ValueError(f"modules_to_save: {name} has no parameters to train")
    adapted = [m.name for m in model.modules() if isinstance(m, Place) and inside(m.name, (name,))]
    if adapted:
        raise ValueError(
            f"modules_to_save: {name} has adapters in it ({', '.join(adapted[:3])}), so it cannot be trained whole "
            "beside them; leave it out"
        )
    nested = [other for other in saved_modules(model) if other != name and inside(other, (name,))]
    if nested or any(other != name and inside(name, (other,)) for other in saved_modules(model)):
        raise ValueError(f"modules_to_save: {name} overlaps a module that another adapter trains whole; name that one")
    if name in saved_modules(model):
        return
    tied = [
        path
        for path, parameter in model.named_parameters(remove_duplicate=False)
        if id(parameter) in own and not inside(path, (name,))
    ]
    if tied:
        raise ValueError(
            f"modules_to_save: {name} shares a weight with {', '.join(tied)}, and a copy would end the sharing; "
            "adapt it instead, or first give it a weight of its own (module.weight = nn.Parameter(weight.clone()))"
        )
