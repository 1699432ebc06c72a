"""`densify`: every compressed layer a dense one again, for tools that need dense weights.

A layer becomes an `nn.Linear` or a convolution of the same map, to rounding; where a transformers model's config says
Conv1D (GPT-2), it becomes that, so that what is saved of it loads as the dense model does. A smaller `nn.Linear` gets
its former features back as zeros, at its end: what reads them reads zeros.
Cost: one product for each layer; the memory of the dense model. Paper: none.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from eckart.compression.files.guard import unguard
from eckart.compression.files.originals import compressed_layers, originals, smaller_linears
from eckart.nn import replace
from eckart.nn.compressed_linear import to_linear


def densify(model: nn.Module) -> nn.Module:
    """Make every compressed layer of a model dense again, in place.

    Args:
        model: Any module; its adapters, if it has any, must be merged first.

    Returns:
        The model, which gives the same outputs, to rounding.

    Raises:
        ValueError: The model has no compressed layers, or a layer shares its module or its weight with another place.

    Example:
        >>> import torch
        >>> from eckart.nn import FactoredLinear
        >>> layer = FactoredLinear(torch.ones(2, 1), torch.tensor([[1.0, 2.0]]))
        >>> model = densify(nn.Sequential(layer))
        >>> model[0].weight.tolist()
        [[1.0, 2.0], [1.0, 2.0]]
    """
    layers: Mapping[str, Any] = compressed_layers(model)
    smaller = smaller_linears(model)
    if not layers and not smaller:
        raise ValueError("model: it has no compressed layers; it is dense already")
    dense = originals(model)
    _untie(layers)
    for name, layer in layers.items():
        replace(model, name, _like(dense.get(name), layer.to_dense(), layer))
    for name, shape in smaller.items():
        linear = model.get_submodule(name)
        replace(model, name, _like(dense.get(name), _padded(linear, shape), linear))
    unguard(model)
    return model


def _untie(layers: Mapping[str, Any]) -> None:
    """Give every layer a basis of its own: `replace` would not end a sharing."""
    seen: set[int] = set()
    for layer in layers.values():
        A = layer._parameters.get("A")
        if A is not None and id(A) in seen:
            layer.A = nn.Parameter(A.detach().clone(), A.requires_grad)
        seen.add(id(A))


def _like(original: nn.Module | None, dense: Any, layer: nn.Module) -> nn.Module:
    """The dense layer in the class that the model had there, where that stores its weight as (in, out)."""
    if hasattr(original, "nf"):
        made: Any = deepcopy(original)
        bias = dense.weight.new_zeros(len(dense.weight)) if dense.bias is None else dense.bias.detach()
        made.weight, made.bias = nn.Parameter(dense.weight.detach().T.contiguous()), nn.Parameter(bias)
        dense = made
    trains = [parameter.requires_grad for parameter in layer.parameters()]
    return dense.requires_grad_(any(trains) or not trains)  # codes alone have no parameters, and are not frozen by that


def _padded(linear: Any, shape: tuple[int, int]) -> nn.Linear:  # (m, n)
    """The layer with zeros for the features that it lacks."""
    weight: Tensor = linear.weight.detach()
    W = weight.new_zeros(shape)
    W[: weight.shape[0], : weight.shape[1]] = weight
    if linear.bias is None:
        return to_linear(W, None)
    b = weight.new_zeros(shape[0])
    b[: weight.shape[0]] = linear.bias.detach()
    return to_linear(W, b)
