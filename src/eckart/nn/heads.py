"""Which matrices make a model's output."""

from collections.abc import Iterable

from torch import nn

from eckart.nn.matrices import Matrix
from eckart.nn.standing_in import StandIns


def head_names(model: nn.Module, found: Iterable[Matrix]) -> set[str]:
    """The names of the matrices that are tied to an embedding, or are what the model says its head is.

    Args:
        model: The model; modules that stand in another's place (see `nn.standing_in`) are looked through.
        found: Its matrices.

    Example:
        >>> from eckart.nn import matrices
        >>> model = nn.Sequential(nn.Linear(4, 9, bias=False), nn.Linear(9, 4), nn.Embedding(9, 4))
        >>> model[0].weight = model[2].weight
        >>> head_names(model, matrices(model))
        {'0'}
    """
    seen = StandIns(model)
    paths = list(model.named_modules(remove_duplicate=False))
    outer = {path: seen.outer(path) for path, module in paths if isinstance(module, nn.Embedding | nn.EmbeddingBag)}
    tables = {each[0] for each in outer.values() if each is not None}
    head = _acting(getattr(model, "get_output_embeddings", lambda: None)())
    return {
        matrix.name
        for matrix in found
        if matrix.module is head or (matrix.tied and not tables.isdisjoint((matrix.name, *matrix.tied)))
    }


def _acting(module: nn.Module | None) -> nn.Module | None:
    """The module that acts where others stand in its place."""
    while module is not None and hasattr(type(module), "acts_through"):
        module = module.get_submodule(module.acts_through)  # type: ignore[arg-type]
    return module
