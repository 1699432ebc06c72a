"""What a training with low-rank states takes, from shapes and options alone: bytes of states, gradients, workspace.

For a matrix turned to (p, q) with a basis (q, r), s bytes a number (4; 8 for float64), E matrices of a stack:

    scalars    step, since, basis_step, side: 8 each on the host; gap 8; last_norm s E; grad_norm 4
    basis      s E q r;  in 4 bits 132 E ⌈q r / 256⌉;  coordinates 8 r;  drawn from the seed 0
    moments    s E p r each;  in 8 bits E p (r + 4 ⌈r / 64⌉);  factored s E p, s E r or s E q
    error      s E p q
    AdamW      2 s n + 4

of the part that this process holds. Workspace is an estimate of what a step makes beside all that at its peak: R, D and
the like of the matrices that go together, and what one of them takes to be renewed, packed or rounded.
Paper: the tables of GaLore and APOLLO count weights and states alone, in bfloat16.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from eckart.linalg import working_dtype
from eckart.optim.checking import in_subspace
from eckart.optim.inner import INNER
from eckart.optim.optimizer import LowRankOptimizer
from eckart.optim.projectors import PROJECTORS
from eckart.optim.residuals import FEEDBACK
from eckart.optim.sharding import Shards, here
from eckart.optim.step.keeping import BLOCK_4BIT, BLOCK_8BIT
from eckart.optim.step.portions import portions
from eckart.optim.step.shapes import SHAPES
from eckart.optim.step.view import as_matrix_shape, is_left, rank_of


@dataclass(frozen=True)
class Shape:
    """A matrix as the optimizer sees it, of this process."""

    stack: int  # E
    p: int
    q: int
    r: int
    size: int  # s

    @classmethod
    def of(cls, parameter: Tensor, group: Mapping[str, Any]) -> "Shape":
        """The shape of a parameter in its group."""
        stack, shards = group["stack"], Shards(parameter, group["stack"])
        *batch, m, n = as_matrix_shape(here(parameter).shape, stack)
        left = is_left(tuple(parameter.shape), group["side"], shards.dim, stack, "")
        p, q = (n, m) if left else (m, n)
        rank = rank_of(group["rank"], parameter.shape, stack)
        return cls(batch[0] if batch else 1, p, q, rank, working_dtype(parameter.dtype).itemsize)

    def bytes_of(self, kind: str) -> int:
        """Of what has a shape of `SHAPES`."""
        rows, columns = SHAPES[kind](self.p, self.q, self.r)
        return self.stack * rows * columns * self.size


def state_bytes(parameter: Tensor, group: Mapping[str, Any]) -> int:
    """Bytes of a parameter's state, its scalars included.

    Args:
        parameter: Of any device; on "meta" too.
        group: The optimizer's.

    Example:
        >>> import torch
        >>> optimizer = LowRankOptimizer(torch.nn.Linear(64, 32, bias=False), rank=4)
        >>> group = optimizer.param_groups[0]  # basis (32, 4) and two moments (64, 4), four scalars
        >>> state_bytes(group["params"][0], group), 4 * (32 * 4 + 2 * 64 * 4) + 4 * 8
        (2592, 2592)
    """
    if not in_subspace(parameter, group):
        return 2 * here(parameter).numel() * working_dtype(parameter.dtype).itemsize + 4
    shape = Shape.of(parameter, group)
    scalars = 8 * 5 if group["schedule"] == "adaptive" else 8 * 4
    limiter = shape.bytes_of("count") if group["limiter"] == "growth" else 0
    error = shape.bytes_of("gradient") if group["residual"] in FEEDBACK else 0
    further = sum(map(shape.bytes_of, PROJECTORS[group["projector"]].state.values()))
    return scalars + limiter + error + further + _basis(shape, group) + _moments(shape, group)


def _basis(shape: Shape, group: Mapping[str, Any]) -> int:
    if group["basis"] == "seed":
        return 0
    if group["projector"] == "coordinates":
        return 8 * shape.r
    if group["basis"] == "4bit":
        return shape.stack * -(-shape.q * shape.r // BLOCK_4BIT) * (BLOCK_4BIT // 2 + 4)
    return shape.bytes_of("basis")


def _moments(shape: Shape, group: Mapping[str, Any]) -> int:
    packed = shape.stack * shape.p * (shape.r + 4 * -(-shape.r // BLOCK_8BIT))
    eight = group["moments"] == "8bit"
    kinds = INNER[group["inner"]].moments.values()
    return sum(packed if eight and kind == "full" else shape.bytes_of(kind) for kind in kinds)


def gradient_bytes(optimizer: LowRankOptimizer, passes: int = 0) -> tuple[int, int]:
    """Bytes of gradients that are alive at a time, at most: at a refresh (and the first step), and at other steps.

    In ordinary mode all of them. In the backward pass one; over micro-batches all of them where they add up whole, and
    R and one gradient where they add up in the subspace.

    Args:
        optimizer: Whose.
        passes: Backward passes for each step of `step_in_backward`; 0 for ordinary steps.
    """
    grads = [(p, group, here(p).nbytes) for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    every = sum(size for *_, size in grads)
    if not passes or not grads:
        return every, every
    largest = max(size for *_, size in grads)
    if passes == 1:
        return largest, largest
    kept, freed = 0, [0]
    for p, group, size in grads:
        projected = Shape.of(p, group).bytes_of("full") if adds_up(p, group) else None
        kept += size if projected is None else projected
        freed.append(0 if projected is None else size)
    return every, kept + max(freed)


def adds_up(parameter: Tensor, group: Mapping[str, Any]) -> bool:
    """Whether what a step uses of a gradient is R = X V alone, while the basis stays."""
    follows = PROJECTORS[group["projector"]].after is not None  # each step looks at the gradient to move the basis
    looks = follows or INNER[group["inner"]].looks
    return in_subspace(parameter, group) and group["residual"] == "drop" and not looks


def workspace_bytes(optimizer: LowRankOptimizer, passes: int = 0) -> int:
    """Bytes that a step makes for itself at its peak, about; arguments as for `gradient_bytes`."""
    most = 0
    for group in optimizer.param_groups:
        low = [p for p in group["params"] if in_subspace(p, group)]
        together = [[p] for p in low] if passes else portions(low, group)
        for some in together:
            each = [_passing(p, Shape.of(p, group), group) for p in some]
            most = max(most, sum(stays for stays, _ in each) + max(passes for _, passes in each))
        plain = [p for p in group["params"] if not in_subspace(p, group)]
        most = max([most, *(_rounded(p, 2) for p in plain)])
    return most


def _passing(parameter: Tensor, shape: Shape, group: Mapping[str, Any]) -> tuple[int, int]:
    """Bytes that a matrix takes until those beside it are done, and while it is its turn."""
    whole, R, V = (shape.bytes_of(kind) for kind in ("gradient", "full", "basis"))
    projector, inner, residual = PROJECTORS[group["projector"]], INNER[group["inner"]], group["residual"]
    feeds_back = residual in FEEDBACK or "error" in projector.state
    stays = 2 * R + (R if inner.looks else 0)  # R and D
    stays += whole if working_dtype(parameter.dtype) != parameter.dtype else 0
    stays += V if group["basis"] != "float32" else 0
    stays += R if residual in ("norm-scaled", "sgd") else 0
    stays += whole if feeds_back or residual == "sign" else 0
    passes = [_rounded(parameter, 0), R if residual in ("norm-scaled", "sgd") else 0]
    if group["moments"] == "8bit":
        stays += R * (1 + list(inner.moments.values()).count("full"))
        passes.append(9 * R)
    if feeds_back or residual == "sign":
        passes.append(whole * (2 if feeds_back else 1))
    if residual in ("norm-scaled", "whole") or projector.after is not None:
        passes.append(whole + 2 * V)
    if projector.looks and projector.renew is not None:
        passes.append(R + 6 * V + (3 * whole if "whole" in projector.sends else 0))
    return stays, max(passes)


def _rounded(parameter: Tensor, further: int) -> int:
    """Bytes of a weight in float32 with what rounds it back at random, and further tensors of its size."""
    if working_dtype(parameter.dtype) == parameter.dtype:
        return 0
    return here(parameter).numel() * (4 * (2 + further) + 7)  # float32, its noise; two roundings, a choice, the result
