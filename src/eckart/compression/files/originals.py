"""What a model's layers were before they were compressed, as far as the model itself can say.

A smaller `nn.Linear` says by its attribute `dense_shape`, the (m, n) of the matrix that it stands for, that it is one.
A transformers model says by its config of which class each layer was: built again from it on the meta device, it takes
no memory.
Paper: none.
"""

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from eckart.nn.compressed import is_compressed


def originals(model: nn.Module) -> dict[str, nn.Module]:
    """Every module of the dense model by its name, on the meta device; empty where no config tells of it.

    Example:
        >>> originals(nn.Sequential(nn.Linear(2, 2)))
        {}
    """
    found: dict[str, nn.Module] = {}
    inside: str | None = None
    for path, module in model.named_modules():
        if inside is not None and path.startswith(inside):
            continue
        config = getattr(module, "config", None)
        if config is not None and hasattr(type(module), "config_class"):
            inside = f"{path}." if path else ""
            with torch.device("meta"):
                dense = type(module)(deepcopy(config))
            found |= {inside + name: each for name, each in dense.named_modules() if name}
    return found


def compressed_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The compressed layers of a model by their names; the parts inside one are not layers of their own.

    Example:
        >>> from eckart.nn import FactoredLinear
        >>> list(compressed_layers(nn.Sequential(nn.Linear(2, 2), FactoredLinear.empty(2, 2, rank=1))))
        ['1']
    """
    found: dict[str, nn.Module] = {}
    inside: str | None = None
    for path, module in model.named_modules():
        if inside is not None and path.startswith(inside):
            continue
        if is_compressed(module):
            found[path] = module
            inside = f"{path}."
    return found


def smaller_linears(model: nn.Module) -> dict[str, tuple[int, int]]:
    """The plain `nn.Linear` layers that stand for larger ones, as their `dense_shape` says: name → that (m, n).

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        >>> model[0].dense_shape = (6, 4)
        >>> smaller_linears(model)
        {'0': (6, 4)}
    """
    linears: dict[str, Any] = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {path: tuple(linear.dense_shape) for path, linear in linears.items() if hasattr(linear, "dense_shape")}


def is_compressed_model(model: nn.Module) -> bool:
    """Whether a model holds compressed layers."""
    return bool(compressed_layers(model) or smaller_linears(model))
