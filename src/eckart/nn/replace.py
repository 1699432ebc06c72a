"""Put another module in a module's place: the only code of eckart that swaps layers of a model."""

from collections.abc import Mapping

from torch import nn

from eckart.nn.patterns import closest
from eckart.nn.weights import seen_as


def replace(model: nn.Module, name: str, module: nn.Module, *, untie: bool = False) -> nn.Module:
    """Put `module` where the model has `name`, in the same training mode.

    Args:
        model: the model to change.
        name: the dotted path of the module to replace, as `matrices` gives it.
        module: the new one.
        untie: whether a parameter that another place shares may stay there alone.

    Returns:
        The old module, untouched.

    Raises:
        ValueError: the model has no module of that name (the message gives the closest), or the module shares a
            parameter with another place (a tied weight) and the new one does not hold it: that would end the sharing,
            and `untie` is false.
            A basis that compressed layers share does not tie their weights.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        >>> replace(model, "1", nn.GELU())
        ReLU()
        >>> model[1]
        GELU(approximate='none')
    """
    old = _module(model, name)
    if old is None:
        modules = dict(model.named_modules(remove_duplicate=False))
        what = "a parameter, not a module," if name in dict(model.named_parameters()) else "not a module"
        close = closest(name, filter(None, modules), whole=True)
        raise ValueError(f"{name!r} is {what} of this {type(model).__name__}; closest: {close}")
    if not untie and (others := _untied(model, name, old, module)):
        raise ValueError(
            f"{name} shares a parameter or is itself shared with {', '.join(others)}; replacing it alone would untie "
            f"them: exclude it, or first give it a weight of its own (module.weight = nn.Parameter(weight.clone()))"
        )
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module.train(old.training))
    return old


def replace_all(model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Put all modules in their places, or after an error none.

    Args:
        model: the model to change.
        modules: name → the new module.

    Returns:
        Name → the old module, for `put_back`.

    Raises:
        ValueError: as `replace`.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        >>> old = replace_all(model, {"0": nn.Identity(), "1": nn.GELU()})
        >>> put_back(model, old)
        >>> [type(module).__name__ for module in model]
        ['Linear', 'ReLU']
    """
    old: dict[str, nn.Module] = {}
    try:
        for name, module in modules.items():
            old[name] = replace(model, name, module)
    except BaseException:
        put_back(model, old)
        raise
    return old


def put_back(model: nn.Module, old: Mapping[str, nn.Module]) -> None:
    """The old modules stand in their places again; those of one basis go one after another."""
    for name in reversed(list(old)):
        replace(model, name, old[name], untie=True)


def _module(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name) if name else None
    except AttributeError:
        return None


def _untied(model: nn.Module, name: str, old: nn.Module, new: nn.Module) -> list[str]:
    """The other places that hold a parameter of the old module which the new one (a wrapper keeps it) does not hold."""
    lost = {id(parameter) for parameter in old.parameters()} - {id(parameter) for parameter in new.parameters()}
    if not lost:
        return []  # a wrapper; walking the whole model for each layer would cost seconds
    if seen_as(old) is not None:  # its weight is computed: a factor that others hold too ties no weight to theirs
        return [path for path, module in model.named_modules(remove_duplicate=False) if module is old and path != name]
    inside = f"{name}."
    return [
        path
        for path, parameter in model.named_parameters(remove_duplicate=False)
        if id(parameter) in lost and not path.startswith(inside)
    ]
