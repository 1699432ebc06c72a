"""Which base an adapter belongs to: the model's class, its matrices' shapes, and two numbers of each of a few matrices.

    S = W[::a, ::b] with at most 256 × 256 entries in float64,    ‖S‖,   ⟨S, cos(k)⟩ / ‖S‖ over its entries k = 0, 1, …

The first number sees a scale, the second sees whatever turns the weight: fine-tuning moves it by about ‖ΔW‖/‖W‖.
Both agree to 1e-6 where the weights are the same, and to 1e-2 where they were only cast to another dtype.
Cost: 64k entries of at most eight matrices.
Paper: none.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eckart.adapters.layers.place import places
from eckart.nn import Matrix
from eckart.nn.foreign_quantized import is_quantized
from eckart.nn.patterns import closest

LOOKED_AT = 8  # matrices
SIDE = 256
SAME, CAST = 1e-6, 1e-2


def identity(model: nn.Module, found: Mapping[str, Matrix]) -> dict[str, Any]:
    """What tells the base of these matrices from others, as plain data.

    Args:
        model: The model, with or without adapters.
        found: The adapted matrices by name.
    """
    return {
        "class": _class(model),
        "name": base_name(model),
        "matrices": {name: [*stack_of(matrix), *matrix.shape] for name, matrix in found.items()},
        "fingerprint": {name: _fingerprint(model, found[name]) for name in _few(list(found))},
    }


def differences(model: nn.Module, found: Mapping[str, Matrix], known: Mapping[str, Any]) -> list[str]:
    """How a model differs from the base that an adapter was made for, in words; empty where it does not.

    Args:
        model: The model, with or without adapters.
        found: All of its matrices by name.
        known: What `identity` gave when the adapter was saved.
    """
    said = []
    if known.get("class", _class(model)) != _class(model):
        said.append(f"it is a {_class(model)}, and the adapter was made for a {known['class']}")
    for name, shape in known.get("matrices", {}).items():
        if name not in found:
            said.append(f"it has no matrix {name} (closest: {closest(name, found, whole=True)})")
        elif [*stack_of(found[name]), *found[name].shape] != shape:
            said.append(f"{name} is {(*stack_of(found[name]), *found[name].shape)}, was {tuple(shape)}")
    if said:
        return _shortened(said)
    for name, then in known.get("fingerprint", {}).items():
        now = _fingerprint(model, found[name])
        if not _agree(now, then):
            said.append(f"the weights of {name} are others (‖S‖ {now['norm']:.6g}, was {then['norm']:.6g})")
    return _shortened(said)


def _shortened(said: list[str], most: int = 4) -> list[str]:
    return said if len(said) <= most else [*said[:most], f"and {len(said) - most} more"]


def base_name(model: nn.Module) -> str | None:
    """Where the model's weights come from, as it says itself."""
    name = getattr(getattr(model, "config", None), "name_or_path", None)
    return name if isinstance(name, str) and name else None


def stack_of(matrix: Matrix) -> tuple[int, ...]:
    """The leading dimension of a stack of matrices, if it is one."""
    return (matrix.stack,) if matrix.stack > 1 else ()


def frozen_weight(model: nn.Module, matrix: Matrix) -> Tensor:  # (m, n), or (stack, m, n)
    """The base's weight, whatever adapters sit on it."""
    place = places(model).get(matrix.name)
    return place.weight_matrix() if place is not None else matrix.weight().detach()


def _class(model: nn.Module) -> str:
    """The name of the model's own class: FSDP2 gives a sharded module one that it makes."""
    return next(kind for kind in type(model).__mro__ if not kind.__module__.startswith("torch.distributed.")).__name__


def _few(names: list[str]) -> list[str]:
    step = max(1, -(-len(names) // LOOKED_AT))
    return names[::step]


def _fingerprint(model: nn.Module, matrix: Matrix) -> dict[str, Any]:
    unseen: dict[str, Any] = {"dtype": None, "norm": None, "turn": None}  # quantised or sharded: no plain values
    if is_quantized(matrix.module):
        return unseen
    W = frozen_weight(model, matrix)
    if W.is_meta or not W.is_floating_point() or type(W) not in (Tensor, nn.Parameter):
        return unseen
    dtype = str(W.dtype).removeprefix("torch.")
    m, n = W.shape[-2:]
    S = W[..., :: max(1, m // SIDE), :: max(1, n // SIDE)].double().flatten().cpu()
    norm = torch.linalg.vector_norm(S).item()
    turn = (S @ torch.arange(S.numel(), dtype=torch.float64).cos()).item()
    return {"dtype": dtype, "norm": norm, "turn": turn / norm if norm else 0.0}


def _agree(now: Mapping[str, Any], then: Mapping[str, Any]) -> bool:
    if now["norm"] is None or then["norm"] is None:
        return True
    tolerance = SAME if now["dtype"] == then["dtype"] else CAST
    scale = max(abs(then["norm"]), 1e-30)
    return abs(now["norm"] - then["norm"]) <= tolerance * scale and abs(now["turn"] - then["turn"]) <= 10 * tolerance
