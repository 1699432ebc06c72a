"""Which matrix makes a model's output."""

from torch import nn

from eckart.nn.matrices import Matrix


def is_head(model: nn.Module, matrix: Matrix) -> bool:
    """Whether a matrix is tied to an embedding, or is what the model says its head is (`get_output_embeddings`).

    Example:
        >>> from eckart.nn import matrices
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False))
        >>> model[1].weight = model[0].weight
        >>> [is_head(model, matrix) for matrix in matrices(model)]
        [True]
    """
    output = getattr(model, "get_output_embeddings", lambda: None)()
    owners = [model.get_submodule(name) for name in (matrix.name, *matrix.tied) if _is_module(model, name)]
    tied_to_table = bool(matrix.tied) and any(isinstance(each, nn.Embedding) for each in owners)
    return matrix.module is output or tied_to_table


def _is_module(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True
