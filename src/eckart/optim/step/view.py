"""A parameter as the matrix X that the optimizer works on, turned so that the basis is on the columns.

    side right: X = W (m, n), basis V (n, r);    side left: X = Wᵀ (n, m), basis V (m, r)

so that always R = X V (p, r). `left` and `right` are of the parameter as it is stored. A convolution (out, in, k, …) is
(out, in·k·…); a stack of experts (E, m, n) stays a batch.
"""

import math
from collections.abc import Sequence

from torch import Tensor

SIDES = ("smaller", "left", "right")


def as_matrix(t: Tensor, stack: bool) -> Tensor:  # (m, n), or (E, m, n)
    """A tensor of the parameter's shape as a matrix or a batch of matrices: a view wherever one exists."""
    return t if t.ndim == 2 or stack else t.flatten(1)


def as_matrix_shape(shape: Sequence[int], stack: bool) -> tuple[int, ...]:
    """The shape that `as_matrix` gives."""
    return tuple(shape) if len(shape) == 2 or stack else (shape[0], math.prod(shape[1:]))


def rank_of(rank: float, shape: Sequence[int], stack: bool) -> int:
    """r of a parameter: a whole number as it is, a share below 1 of the smaller dimension (at least 1)."""
    if isinstance(rank, int):
        return rank
    return max(1, round(rank * min(as_matrix_shape(shape, stack)[-2:])))


def turned(t: Tensor, stack: bool, left: bool) -> Tensor:  # (p, q), or (E, p, q)
    """The same with the basis on its columns."""
    W = as_matrix(t, stack)
    return W.mT if left else W


def is_left(shape: tuple[int, ...], side: str | None, shared: int | None, stack: bool, name: str) -> bool:
    """Whether the basis is on the left.

    Args:
        shape: Of the parameter.
        side: What was asked for; None is the smaller side, or the one that is not shared out.
        shared: The parameter's dimension that is shared out between processes.
        stack: Whether dimension 0 counts matrices.
        name: For the message.

    Raises:
        ValueError: The basis would lie on the side that is shared out.
    """
    rows, columns = (1, 2) if stack else (0, 1)
    m, n = as_matrix_shape(shape, stack)[-2:]
    smaller = m < n
    allowed = {rows: False, columns: True}.get(shared) if shared is not None else None
    if side is None:
        return smaller if allowed is None else allowed
    left = smaller if side == "smaller" else side == "left"
    if allowed is not None and left != allowed:
        raise ValueError(
            f"side: {side!r} puts the basis of {name} {tuple(shape)} on dimension {shared}, which is shared out "
            f"between processes: each step would send a matrix. Use side={'left' if allowed else 'right'!r}, or None"
        )
    return left
