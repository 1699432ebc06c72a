"""Which matrices of a model are compressed, and why others are not.

Paper: none.
"""

from torch import nn

from eckart.nn import Matrix, Patterns, left_out, matrices
from eckart.nn.compressed import is_compressed
from eckart.nn.heads import head_names

KINDS = ("linear", "conv1d", "conv")


def selected(
    model: nn.Module, targets: Patterns = None, exclude: Patterns = None, *, again: bool = False
) -> tuple[list[Matrix], dict[str, str]]:
    """The matrices to compress, in the model's order, and the others.

    Args:
        model: Any module.
        targets: Glob patterns; None means all but embeddings and heads.
        exclude: Glob patterns of those that stay dense.
        again: Whether layers that are compressed already may be compressed further.

    Returns:
        The matrices; and name → why it is left out.

    Raises:
        ValueError: A pattern matches nothing, nothing is left, or the model is compressed or adapted already.

    Example:
        >>> found, others = selected(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Conv1d(4, 4, 3, groups=2)))
        >>> [matrix.name for matrix in found], others["2"]
        (['1'], 'a stack of 2 matrices in one parameter')
    """
    found = matrices(model, targets, exclude)
    heads = head_names(model, found) if targets is None else set()
    reasons = {matrix.name: _reason(matrix, heads) for matrix in found}
    chosen = [matrix for matrix in found if not reasons[matrix.name]]
    already = [matrix.name for matrix in chosen if is_compressed(matrix.module)]
    if already and not again:
        raise ValueError(
            f"model: it is compressed already ({len(already)} layers, {already[0]} first); pass again=True to go on "
            "from there, or densify(model) first"
        )
    adapted = [matrix.name for matrix in chosen if matrix.changed_by is not None]
    if adapted:
        raise ValueError(f"model: it has adapters ({adapted[0]} first); eckart.merge(model) them first")
    if not chosen:
        raise ValueError(f"targets: none of {len(found)} matrices can be compressed; the first: {found[0].name} is "
                         f"{reasons[found[0].name]}")  # fmt: skip
    others = {name: reason for name, reason in reasons.items() if reason}
    return chosen, others | {name: why for name, why in left_out(model, targets, exclude).items() if name not in others}


def _reason(matrix: Matrix, heads: set[str]) -> str:
    """Why a matrix is left out; empty if it is not."""
    if hasattr(matrix.module, "dense_shape"):
        return "compressed already, to fewer neurons: densify(model) first"
    if matrix.kind == "embedding":
        return "an embedding: its rows are looked up, not multiplied"
    if matrix.name in heads:
        return "the head: name it in targets to compress it"
    if matrix.tied:
        return f"tied to {matrix.tied[0]}: both would have to change"
    if matrix.stack > 1:
        return f"a stack of {matrix.stack} matrices in one parameter"
    if matrix.kind not in KINDS:
        return f"of kind {matrix.kind}: a parameter without a layer of its own"
    return ""
