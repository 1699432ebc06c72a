"""How many matrices make a step together: as many as their temporaries allow.

Paper: none.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from eckart.linalg import working_dtype
from eckart.optim.projectors import PROJECTORS
from eckart.optim.residuals import FORMING
from eckart.optim.sharding import Shards
from eckart.optim.step.view import as_matrix_shape, rank_of

TOGETHER = 1 << 24  # numbers that a step makes of gradients and that are alive at a time: 64 MiB


def portions(parameters: list[Tensor], group: dict[str, Any]) -> Iterator[list[Tensor]]:
    """Cut a list so that what a part makes, R or what is of X's size, takes no more than `TOGETHER` numbers."""
    part: list[Tensor] = []
    size = 0
    for p in parameters:
        shape, stack = p.shape, group["stack"]
        here = p.numel() // Shards(p, stack).parts
        projected = here // min(as_matrix_shape(shape, stack)[-2:]) * rank_of(group["rank"], shape, stack)
        formed = group["residual"] in FORMING or "error" in PROJECTORS[group["projector"]].state
        made = projected + (here if formed or p.dtype != working_dtype(p.dtype) else 0)
        if part and size + made > TOGETHER:
            yield part
            part, size = [], 0
        part.append(p)
        size += made
    if part:
        yield part
