"""Which layers of a model are compressed, as plain data, and the empty layers that such data tell of.

    {matrix name: spec},   spec = what the layer's `spec()` says, or {"kind": "linear", …} of a smaller dense layer

A basis A that several layers hold (Basis Sharing) is stored with the first of them; the others name that one under
"shares". No names of code are in it: what a kind means is told by `nn.compressed.LAYERS` alone.
Paper: none.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eckart.compression.files.originals import compressed_layers, smaller_linears
from eckart.nn.compressed import layer_from_spec
from eckart.nn.patterns import closest
from eckart.nn.weights import layouts

FORMAT = 1
Specs = dict[str, dict[str, Any]]


def describe(model: nn.Module) -> Specs:
    """The spec of every compressed layer of a model.

    Args:
        model: Any module.

    Returns:
        Matrix name → spec, as JSON can hold it; empty for a dense model.

    Raises:
        ValueError: The model has adapters on it, or is a single compressed layer with no place to be put in.

    Example:
        >>> from eckart.nn import FactoredLinear
        >>> describe(nn.Sequential(FactoredLinear.empty(4, 4, rank=1), nn.Linear(4, 2)))
        {'0': {'kind': 'factored', 'in_features': 4, 'out_features': 4, 'rank': 1, 'bias': True}}
    """
    layers: dict[str, Any] = compressed_layers(model)
    smaller = smaller_linears(model)
    if not layers and not smaller:
        return {}
    _check(model, layers)
    holders: dict[int, str] = {}
    specs: Specs = {}
    for name, layer in layers.items():
        specs[name] = dict(layer.spec())
        A = layer._parameters.get("A")
        if A is not None and holders.setdefault(id(A), name) != name:
            specs[name]["shares"] = holders[id(A)]
    for name in smaller:
        linear: Any = model.get_submodule(name)
        sizes = {"in_features": linear.in_features, "out_features": linear.out_features}
        specs[name] = {"kind": "linear", **sizes, "bias": linear.bias is not None}
    return specs


def check_specs(specs: object, source: str) -> Specs:
    """What a file says, checked as far as its own words go.

    Args:
        specs: What should be matrix name → spec.
        source: The file, for the message.

    Raises:
        ValueError: It is something else, or a "shares" names no other layer.
    """
    if not isinstance(specs, Mapping) or not specs or not all(isinstance(spec, Mapping) for spec in specs.values()):
        raise ValueError(f"{source} is damaged: its layers must be matrix name → spec; write or download it again")
    for name, spec in specs.items():
        if "shares" in spec and "shares" in specs.get(spec["shares"], {"shares": None}):
            raise ValueError(f"{source} is damaged: {name} shares the basis of {spec['shares']!r}, which holds none")
    return {name: dict(spec) for name, spec in specs.items()}


def build(specs: Specs, model: nn.Module, source: str, dtype: torch.dtype | None = None) -> dict[str, nn.Module]:
    """The empty layers of a description, on the meta device, checked to fit a model; shared bases are one parameter.

    Args:
        specs: What `check_specs` gave.
        model: Where they are to stand; it is not changed.
        source: The file, for messages.
        dtype: Of their numbers; None is that of the layer whose place they take.

    Raises:
        ValueError: A spec is damaged, or names a layer that the model has not or that has other sizes.
    """
    modules = dict(model.named_modules())
    built: dict[str, Any] = {}
    for name, spec in specs.items():
        if not name or name not in modules:
            near = closest(name, filter(None, modules), whole=True)
            raise ValueError(f"{source} is of another model: this one has no layer {name} (closest: {near})")
        try:
            own = {key: value for key, value in spec.items() if key != "shares"}
            layer: Any = layer_from_spec(own, dtype or _dtype(modules[name]), "meta")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{source} is damaged, layer {name}: {error}; write or download it again") from error
        shape = _checked_shape(name, layer, modules[name], source)
        if type(layer) is nn.Linear:
            layer.dense_shape = shape  # type: ignore[assignment]
        built[name] = layer
    for name, spec in specs.items():
        if "shares" in spec:
            _share(built, name, spec["shares"], source)
    return built


def _share(built: dict[str, Any], name: str, holder: str, source: str) -> None:
    A, other = built[name]._parameters.get("A"), built[holder]._parameters.get("A")
    if A is None or other is None or A.shape != other.shape:
        raise ValueError(f"{source} is damaged: {name} cannot share the basis of {holder}, which has another shape")
    built[name].A = other


def _check(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    adapted = next((path for path, module in model.named_modules() if hasattr(type(module), "acts_through")), None)
    if adapted is not None:
        raise ValueError(
            f"model: {adapted} is adapted; merge the adapter first (eckart.merge), or save it alone "
            "(eckart.adapters.save) beside the compressed model as it was before"
        )
    if "" in layers:
        raise ValueError(f"model: it is a {type(model).__name__} itself; put it in a module, as nn.Sequential(layer)")


def _checked_shape(name: str, layer: Any, place: nn.Module, source: str) -> tuple[int, int]:
    """The shape (m, n) of the matrix that is there, which a layer must stand for; a dense one may have less of it."""
    sizes = (layer.out_features, layer.in_features)
    now = next((each.shape for each in layouts(place) if each.parameter == "weight" and each.stack == 1), None)
    now = getattr(place, "dense_shape", now)
    if now is None or (sizes != now and not (type(layer) is nn.Linear and sizes[0] <= now[0] and sizes[1] <= now[1])):
        has = f"a {type(place).__name__}" + (f" of shape {now}" if now else "")
        raise ValueError(f"{source} is of another model: {name} is {sizes} there, and {has} here")
    return now


def _dtype(module: nn.Module) -> torch.dtype | None:
    tensors: list[Tensor] = [*module.parameters(), *module.buffers()]
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)
