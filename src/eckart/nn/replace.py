"""Put another module in a module's place: the only code of eckart that swaps a layer of a model."""

from difflib import get_close_matches

from torch import nn


def replace(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put `module` where the model has `name`, in the same training mode.

    Args:
        model: the model to change.
        name: the dotted path of the module to replace, as `matrices` gives it.
        module: the new one.

    Returns:
        The old module, untouched.

    Raises:
        ValueError: the model has no module of that name (the message gives the closest), or the module shares a
            parameter with another place (a tied weight), where a replacement would silently end the sharing.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        >>> replace(model, "1", nn.GELU())
        ReLU()
        >>> model[1]
        GELU(approximate='none')
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    old = modules.get(name)
    if not name or old is None:
        raise ValueError(
            f"{type(model).__name__} has no module {name!r} to replace; closest: {_closest(name, modules)}"
        )
    if others := _sharers(model, name, old):
        raise ValueError(
            f"{name} shares a parameter or is itself shared with {', '.join(others)}; replacing it alone would untie "
            f"them: exclude it, or first give it a weight of its own (module.weight = nn.Parameter(weight.clone()))"
        )
    parent, _, attribute = name.rpartition(".")
    setattr(modules[parent], attribute, module.train(old.training))
    return old


def _sharers(model: nn.Module, name: str, old: nn.Module) -> list[str]:
    """The other places of the model that hold one of the old module's parameters."""
    own = {id(parameter) for parameter in old.parameters()}
    inside = f"{name}."
    return [
        path
        for path, parameter in model.named_parameters(remove_duplicate=False)
        if id(parameter) in own and not path.startswith(inside)
    ]


def _closest(name: str, modules: dict[str, nn.Module]) -> str:
    names = [path for path in modules if path]
    return ", ".join(get_close_matches(name, names, n=3, cutoff=0.3) or names[:3]) or "(it has no modules)"
