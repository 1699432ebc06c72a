"""Put adapters where their matrices are: wrap a layer, parametrize a bare parameter.

Paper: none.
"""

from torch import nn

from eckart.adapters.adapter import Adapter
from eckart.adapters.layers.adapted import AdaptedLayer
from eckart.adapters.layers.adapted_weight import AdaptedWeight
from eckart.adapters.layers.place import Place, places
from eckart.adapters.layers.siblings import Siblings
from eckart.nn import Matrix, replace
from eckart.nn.products import CALLED

_MIXER = ("conv1d", "x_proj", "dt_proj", "out_proj")  # of state-space and delta-rule layers, in their fast paths


def place_all(model: nn.Module, found: list[Matrix], made: dict[str, Adapter], name: str) -> None:
    """Give each matrix its adapter, making a place for those that have none yet."""
    held = places(model)
    siblings = next((p.siblings for p in held.values() if isinstance(p, AdaptedLayer)), None) or Siblings()
    read = read_by_parents(model)
    paths: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(path)
    for matrix in found:
        place: Place | None = held.get(matrix.name)
        if place is None and matrix.kind in CALLED:
            place = AdaptedLayer(matrix, siblings, id(matrix.module) in read)
            siblings.forget()  # which may read what others read
            others = [path for path in paths[id(matrix.module)] if path != matrix.name]
            _wrap(model, matrix, place, others)
        elif place is None:
            place = AdaptedWeight.put(matrix)
        place.add(name, made[matrix.name])


def check_options(model: nn.Module, found: list[Matrix], dropout: float, bias: bool) -> None:
    """Refuse a layer that no module holds, and dropout and biases where there is no input or no bias to change."""
    if any(matrix.module is model and matrix.kind in CALLED for matrix in found):
        raise ValueError(
            f"model: this {type(model).__name__} is itself the layer to adapt, and an adapter takes a layer's place; "
            "give nn.Sequential(model)"
        )
    read = read_by_parents(model)
    bare = [matrix.name for matrix in found if matrix.kind not in CALLED or id(matrix.module) in read]
    if dropout and bare:
        raise ValueError(
            f"dropout: {dropout}, but {', '.join(bare[:3])} are read as weights, with no input of their own to drop "
            f"from; give dropout=0, or exclude={bare[:3]!r}"
        )
    bare = [matrix.name for matrix in found if matrix.kind not in CALLED or matrix.kind == "embedding"]
    if bias and bare:
        raise ValueError(
            f"bias: {', '.join(bare[:3])} have none that can be trained here; give bias=False, or exclude={bare[:3]!r}"
        )


def read_by_parents(model: nn.Module) -> set[int]:
    """The ids of the layers whose weights the modules that hold them are known to read: they may not be called."""
    read = set()
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            read.add(id(_inner(module.out_proj)))
        if hasattr(module, "A_log"):
            read |= {id(_inner(getattr(module, name, None))) for name in _MIXER}
    return read - {id(None)}


def _inner(layer: object) -> object:
    return layer.base if isinstance(layer, AdaptedLayer) else layer


def _wrap(model: nn.Module, matrix: Matrix, place: Place, others: list[str]) -> None:
    """Put the place where the layer is, and wherever else the same layer is."""
    replace(model, matrix.name, place)
    for path in others:
        if model.get_submodule(path) is matrix.module:
            replace(model, path, place)
            place.aliases += (path,)
