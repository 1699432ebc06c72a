"""Which matrices are adapted: by pattern, by exclusion, by range of layers; without any, what is multiplied in a layer.

A tied weight is adapted where it is named, and nowhere else: its other places keep the base weight, with a warning.
"""

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace

from torch import Tensor, nn

from eckart.adapters.layers.place import Place, places
from eckart.adapters.layers.saved_modules import saved_modules
from eckart.nn import Matrix, Patterns, locate, select
from eckart.nn.foreign_quantized import quantized_matrices
from eckart.nn.heads import head_names
from eckart.nn.matrices import _all_matrices
from eckart.nn.weights import layouts

USUAL = ("linear", "conv1d", "conv", "attention")  # adapted unless the caller names targets


@dataclass(frozen=True)
class Held(Matrix):
    """A matrix that has adapters already: `weight` gives the frozen one."""

    place: Place | None = field(default=None, repr=False)

    def weight(self) -> Tensor:
        assert self.place is not None
        return self.place.weight_matrix()


def chosen(
    model: nn.Module,
    targets: Patterns = None,
    exclude: Patterns = None,
    layers: Collection[int] | None = None,
    named: Collection[str] = (),
) -> list[Matrix]:
    """The matrices to adapt, under the names that they had before anything was adapted.

    Args:
        model: The model, with or without adapters on it.
        targets: Glob patterns of names (see `nn.select`); None: every linear, convolution and attention weight but the
            head; no embeddings, no experts.
        exclude: Patterns of names not to adapt.
        layers: Numbers of the layers to adapt (the first integer in a name); None for all.
        named: Whole names that are adapted although `targets` is None.

    Returns:
        The matrices, in the model's order.

    Raises:
        ValueError: A pattern matches nothing (the message gives the closest names), there is no such layer, or nothing
            is left.

    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 2))
        >>> [matrix.name for matrix in chosen(model)], [matrix.name for matrix in chosen(model, layers=[1])]
        (['1', '2'], ['1'])
    """
    found = matrices_before(model)
    every = [name for matrix in found for name in (matrix.name, *matrix.tied)]
    names = set(select(every, targets, exclude))
    if targets is None:
        heads = head_names(model, found)
        names = {m.name for m in found if m.name in names and m.kind in USUAL and m.name not in heads} | names & {
            *named
        }
    found = [each for matrix in found for each in _apart(model, matrix, names)]
    if layers is not None:
        wanted, known = set(layers), {layer for layer, _ in map(locate, every) if layer is not None}
        if absent := sorted(wanted - known):
            has = f"numbers from {min(known)} to {max(known)}" if known else "no numbers"
            raise ValueError(f"layers: there is no layer {absent[0]}; those of this {type(model).__name__} have {has}")
        found = [matrix for matrix in found if locate(matrix.name)[0] in wanted]
    if not found:
        raise ValueError(
            f"targets: no matrix of this {type(model).__name__} is left by targets={targets!r}, exclude={exclude!r}, "
            f"layers={layers!r}; give targets that name some"
        )
    return found


def left_by_default(model: nn.Module, found: list[Matrix], rank: object) -> tuple[list[Matrix], dict[str, str]]:
    """Of what is adapted by default, what fits the rank; and why the rest, and experts, are left out.

    Args:
        model: The model.
        found: What `chosen` gave.
        rank: One rank that must be at most min(m, n) of each; None where ranks are free.

    Returns:
        The matrices that fit, then name → reason. Where none fits, all are given back, for the error to speak of.
    """
    reasons = {m.name: "experts: W + Δ would be formed at each use; name them in targets" for m in _experts(model)}
    small = [matrix for matrix in found if isinstance(rank, int) and rank > min(matrix.shape)]
    if len(small) == len(found):
        return found, reasons
    for matrix in small:
        reasons[matrix.name] = f"{matrix.shape} is too small for rank {rank}: give it a rank of its own"
    return [matrix for matrix in found if matrix not in small], reasons


def warn_of_tied(found: list[Matrix]) -> None:
    """Say of each tied weight which of its places is adapted and which are not."""
    adapted = {matrix.name for matrix in found}
    for matrix in found:
        others = [name for name in matrix.tied if name not in adapted]
        if others:
            warnings.warn(
                f"{matrix.name} shares its weight with {', '.join(others)}: the adapter changes {matrix.name} alone, "
                f"{', '.join(others)} keeps the base weight, and `merge` refuses to untie them",
                stacklevel=3,
            )


def matrices_before(model: nn.Module) -> list[Matrix]:
    """All matrices but those of modules that adapters train whole; those that a place holds by the place's name."""
    whole = {id(part) for saved in saved_modules(model).values() for part in saved.modules()}
    held = places(model)
    order = {id(module): position for position, module in enumerate(model.modules())}
    quantised = quantized_matrices(model)
    found = [matrix for matrix in _all_matrices(model) if matrix.name not in quantised]
    found = [matrix for matrix in (*found, *quantised.values()) if id(matrix.module) not in whole]
    found.sort(key=lambda matrix: order[id(matrix.module)])
    return [_as_held(matrix, held) for matrix in found]


def matrices_by_name(model: nn.Module) -> dict[str, Matrix]:
    """All matrices by name, a tied one at each of its places."""
    found = matrices_before(model)
    return {each.name: each for m in found for each in _apart(model, m, {m.name, *m.tied})}


def _as_held(matrix: Matrix, held: Mapping[str, Place]) -> Matrix:
    """The matrix under the names that it had before places were put in, with the frozen weight."""
    name, *tied = (_before(name, held) for name in (matrix.name, *matrix.tied))
    if name not in held:
        return replace(matrix, name=name, tied=tuple(tied))
    own = {each.name: getattr(matrix, each.name) for each in fields(matrix)}
    return Held(**{**own, "name": name, "tied": tuple(tied)}, place=held[name])


def _before(name: str, held: Mapping[str, Place]) -> str:
    outer = name.removesuffix(".base")
    return outer if outer in held else name


def _apart(model: nn.Module, matrix: Matrix, names: set[str]) -> list[Matrix]:
    """The matrix at those of its places that are named: one entry for each module; what others hold is `tied`."""
    every = (matrix.name, *matrix.tied)
    if len(every) == 1:
        return [matrix] if matrix.name in names else []
    owners = {name: _owner(model, name) for name in every}
    entries: dict[int, Matrix] = {}
    for name in every:
        module, parameter = owners[name]
        if name not in names or id(module) in entries:
            continue
        tied = tuple(other for other in every if owners[other][0] is not module)
        here = next(layout for layout in layouts(module, name) if layout.parameter == parameter)
        entries[id(module)] = (
            replace(matrix, name=name, tied=tied)
            if module is matrix.module
            else Matrix(name, module, parameter, here.kind, here.shape, here.stack, tied, here.transposed)
        )
    return list(entries.values())


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that has the matrix of this name, below the place that may hold it, and the parameter's name."""
    try:
        module, parameter = model.get_submodule(name), "weight"
    except AttributeError:
        path, _, parameter = name.rpartition(".")
        module = model.get_submodule(path)
    return (module.base if isinstance(module, Place) else module), parameter  # type: ignore[return-value]


def _experts(model: nn.Module) -> list[Matrix]:
    return [matrix for matrix in matrices_before(model) if matrix.kind == "experts"]
