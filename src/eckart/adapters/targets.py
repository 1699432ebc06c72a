"""Which matrices are adapted: by pattern, by exclusion, by range of layers; without any, all but embedding and head."""

from collections.abc import Collection
from dataclasses import replace

from torch import nn

from eckart.adapters.place import places
from eckart.adapters.saved_modules import saved_modules
from eckart.nn import Matrix, Patterns, locate, matrices, select

USUAL = ("linear", "conv1d", "conv")  # adapted unless the caller names targets


def chosen(
    model: nn.Module, targets: Patterns = None, exclude: Patterns = None, layers: Collection[int] | None = None
) -> list[Matrix]:
    """The matrices to adapt, under the names that they had before anything was adapted.

    Args:
        model: The model, with or without adapters on it.
        targets: Glob patterns of names (see `nn.select`); None: every linear and convolution layer but the head.
        exclude: Patterns of names not to adapt.
        layers: Numbers of the layers to adapt (the first integer in a name); None for all.

    Returns:
        The matrices, in the model's order.

    Raises:
        ValueError: A pattern matches nothing (the message gives the closest names), or nothing is left.

    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 2))
        >>> [matrix.name for matrix in chosen(model)], [matrix.name for matrix in chosen(model, layers=[1])]
        (['1', '2'], ['1'])
    """
    found = _as_before(model)
    names = set(select([name for matrix in found for name in (matrix.name, *matrix.tied)], targets, exclude))
    found = [matrix for matrix in found if names.intersection((matrix.name, *matrix.tied))]
    if targets is None:
        found = [matrix for matrix in found if matrix.kind in USUAL and not _is_head(model, matrix)]
    if layers is not None:
        wanted = set(layers)
        found = [matrix for matrix in found if locate(matrix.name)[0] in wanted]
    if not found:
        raise ValueError(
            f"targets: no matrix of this {type(model).__name__} is left by targets={targets!r}, exclude={exclude!r}, "
            f"layers={layers!r}; give targets that name some"
        )
    return found


def _as_before(model: nn.Module) -> list[Matrix]:
    """All matrices but those of modules that adapters train whole; those that a place holds by the place's name."""
    held = {id(getattr(place, "base", None)): name for name, place in places(model).items()}
    whole = {id(part) for saved in saved_modules(model).values() for part in saved.modules()}
    found = [matrix for matrix in matrices(model) if id(matrix.module) not in whole]
    return [replace(matrix, name=held.get(id(matrix.module), matrix.name)) for matrix in found]


def _is_head(model: nn.Module, matrix: Matrix) -> bool:
    """Whether a matrix makes the model's output: it is tied to an embedding, or is what the model says its head is."""
    output = getattr(model, "get_output_embeddings", lambda: None)()
    return bool(matrix.tied) or matrix.module is output
