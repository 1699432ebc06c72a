"""The MLPs and the attentions of a model whose matrices can be decomposed together, found by role.

Paper: none.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

from torch import nn

from eckart.nn import Matrix, Role

LAYERS = ("linear", "conv1d")  # kinds of matrices that a smaller layer can stand in for
Roles = Mapping[str, Role]


class Mlp(NamedTuple):
    """up, or gate and up, and the matrix that reads them."""

    inner: tuple[Matrix, ...]
    down: Matrix


class Heads(NamedTuple):
    """q with k, or v with o, and their numbers of heads."""

    first: Matrix
    second: Matrix
    heads: int
    kv_heads: int


def mlps(model: nn.Module, found: Sequence[Matrix], roles: Roles) -> Iterator[Mlp]:
    """The MLPs all of whose matrices are among `found`, and where nothing but an activation is between them.

    What is left out: experts in one parameter, a fused gate and up, a norm over the neurons.
    """
    chosen = _layers(found)
    for down in (matrix for name, matrix in chosen.items() if roles[name].kind == "down"):
        ups = [name for name in _nearest(down.name, "up", roles) if name in chosen]
        if len(ups) != 1:
            continue
        gates = [name for name, role in roles.items() if role.kind == "gate" and _parent(name) == _parent(ups[0])]
        inner = [*gates, *ups]
        fits = all(name in chosen and chosen[name].shape[0] == down.shape[1] for name in inner)
        if fits and len(gates) < 2 and not _scaled(model, down, chosen[ups[0]]):
            yield Mlp(tuple(chosen[name] for name in inner), down)


def query_keys(model: nn.Module, found: Sequence[Matrix], roles: Roles) -> Iterator[Heads]:
    """The pairs q, k among `found` whose product is taken as they come, or rotated.

    What is left out: fused ones, and q or k that a norm follows, which would scale what stays.

    Raises:
        ValueError: It cannot be told how many heads they have.
    """
    chosen = _layers(found)
    for name, q in chosen.items():
        if roles[name].kind != "q" or _norms(model, name):
            continue
        keys = [other for other in _siblings(name, "k", roles) if other in chosen]
        if len(keys) == 1 and (heads := _heads(roles, name, keys[0])):
            k = chosen[keys[0]]
            if heads[0] * k.shape[0] == heads[1] * q.shape[0]:
                yield Heads(q, k, *heads)


def value_outputs(model: nn.Module, found: Sequence[Matrix], roles: Roles) -> Iterator[Heads]:
    """The pairs v, o among `found` between which there is the attention alone.

    What is left out: fused ones, heads wider than the inputs, a norm between them, and attention with parameters of its
    own (sinks), whose weights need not sum to one.

    Raises:
        ValueError: It cannot be told how many heads they have.
    """
    chosen = _layers(found)
    for name, v in chosen.items():
        of_scores = {each for each in _norms(model, name) if each.startswith(("q", "k"))}
        if roles[name].kind != "v" or _norms(model, name) - of_scores or _own_parameters(model, name):
            continue
        outputs = [other for other in _nearest(name, "o", roles) if other in chosen]
        if len(outputs) == 1 and (heads := _heads(roles, name, outputs[0])):
            o = chosen[outputs[0]]
            if heads[0] * v.shape[0] == heads[1] * o.shape[1] and v.shape[0] // heads[1] <= v.shape[1]:
                yield Heads(v, o, *heads)


def _layers(found: Sequence[Matrix]) -> dict[str, Matrix]:
    return {matrix.name: matrix for matrix in found if matrix.kind in LAYERS and matrix.stack == 1}


def _heads(roles: Roles, first: str, second: str) -> tuple[int, int]:
    """Query heads and heads of keys and values."""
    role = roles[first]
    if not role.heads or not role.kv_heads:
        raise ValueError(
            f"role: how many heads {first} and {second} have cannot be told; say it with "
            f"role={{{first!r}: Role({role.kind!r}, heads=…, kv_heads=…)}}, or that it is no attention with "
            f"role={{{first!r}: 'other'}}"
        )
    return role.heads, role.kv_heads


def _siblings(name: str, kind: str, roles: Roles) -> list[str]:
    return [other for other, role in roles.items() if role.kind == kind and _parent(other) == _parent(name)]


def _nearest(name: str, kind: str, roles: Roles) -> list[str]:
    """Those of a kind, in the layer or the module of `name`, that share most of its path: one, where it is clear."""
    near = [
        other
        for other, role in roles.items()
        if role.kind == kind and (role.layer == roles[name].layer or _parent(other) == _parent(name))
    ]
    most = max((_shared(name, other) for other in near), default=0)
    return [other for other in near if _shared(name, other) == most]


def _shared(name: str, other: str) -> int:
    pairs = zip(name.split("."), other.split("."), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _norms(model: nn.Module, name: str) -> set[str]:
    """The norms in the module around a matrix, by their names there."""
    beside = model.get_submodule(_parent(name)).named_children()
    return {each for each, module in beside if "norm" in f"{each} {type(module).__name__}".lower()}


def _own_parameters(model: nn.Module, name: str) -> bool:
    return any(True for _ in model.get_submodule(_parent(name)).parameters(recurse=False))


def _scaled(model: nn.Module, down: Matrix, up: Matrix) -> bool:
    """Whether a norm or a scale has one number for each neuron; where the model is as wide, it may be another's."""
    neurons = down.shape[1]
    if neurons == up.shape[1]:
        return False
    around = ".".join(down.name.split(".")[: _shared(down.name, up.name)])
    for module in model.get_submodule(around).modules():
        own = list(module.parameters(recurse=False))
        if all(parameter.ndim < 2 for parameter in own) and any(parameter.numel() == neurons for parameter in own):
            return True
    return False
