"""How one parameter lies over processes: the part that is here, sums over the others, and states that lie alike.

A parameter of FSDP2 is a DTensor with its rows (dimension 0) shared out; of tensor parallelism, its rows or columns.
The dimension that is shared out must be the one that the basis is not on: then G V, the moments and the update are
local, and only what is summed over rows (the next basis, norms) travels. Replicas (DDP, the outer dimension of HSDP)
hold the same and send nothing here. Of a stack whose members are shared out, each matrix is whole somewhere.

Paper: none.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Shards:
    """Where a parameter's parts are.

    Args:
        parameter: A tensor, or a DTensor that is shared out along one axis of its mesh.
        stack: Whether dimension 0 counts matrices; where that is what is shared out, each matrix is whole somewhere.

    Raises:
        ValueError: It is shared out in another way.
    """

    def __init__(self, parameter: Tensor, stack: bool = False) -> None:
        self.whole = _dtensor(parameter)
        self.group: Any = None  # the processes among which it is shared out
        self.dim: int | None = None  # its dimension that is shared out, unless whole matrices are
        self.batch = False  # whether whole matrices of a stack are shared out
        if self.whole is None:
            return
        cut = [axis for axis, each in enumerate(self.whole.placements) if not each.is_replicate()]
        if not cut:
            return
        placement = self.whole.placements[cut[0]]
        shape = tuple(parameter.shape)
        if len(cut) > 1:
            raise ValueError(
                f"params: {shape} is shared out along {len(cut)} axes of its mesh {self.whole.placements}, as by FSDP "
                "with tensor parallelism; one is supported: fully_shard (its other axis may replicate), or tensor "
                "parallelism alone"
            )
        if not placement.is_shard() or (placement.dim and len(shape) > 2 and not stack):
            raise ValueError(f"params: {shape} lies as {placement}; only dimension 0 can be shared out (fully_shard's)")
        self.group = self.whole.device_mesh.get_group(cut[0])
        self.batch = stack and placement.dim == 0
        self.dim = None if self.batch else placement.dim

    @property
    def rows(self) -> Any:
        """The processes among which rows of X are shared out; None where there are no such."""
        return None if self.batch else self.group

    @property
    def parts(self) -> int:
        """Among how many processes it is shared out."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def position(self) -> int:
        """Which of the parts is here; replicas have the same one."""
        return 0 if self.group is None else dist.get_rank(self.group)

    def here(self, t: Tensor) -> Tensor:
        """The part of a tensor that this process holds."""
        return here(t)

    def sum(self, t: Tensor) -> Tensor:
        """Add up over the processes that share rows out, in place."""
        if self.rows is not None:
            dist.all_reduce(t, group=self.rows)
        return t

    def gather(self, X: Tensor) -> Tensor:  # (..., p here, q) -> (..., p, q)
        """All rows of X. Sends them."""
        return X if self.rows is None else self.place(X, by_rows=True).full_tensor()  # type: ignore[attr-defined]

    def part(self, whole: Tensor) -> Tensor:  # (..., p, k) -> (..., p here, k)
        """Of what all processes hold the rows that are here."""
        if self.rows is None:
            return whole
        size = -(-whole.shape[-2] // self.parts)
        return whole[..., size * self.position : size * (self.position + 1), :]

    def members(self, t: Tensor) -> Tensor:  # (E, ...) -> (E here, ...)
        """Of numbers for a whole stack those of the matrices that are here."""
        if not self.batch:
            return t
        size = -(-t.shape[0] // self.parts)
        return t[size * self.position : size * (self.position + 1)]

    def place(self, local: Tensor, by_rows: bool, by_member: bool = True) -> Tensor:
        """A state as it is kept: cut as the parameter is where it has a row for each row of X, else the same for all.

        Args:
            local: (..., p here, k) or (..., q, k), or one number for each matrix.
            by_rows: Whether its rows are those of X.
            by_member: Whether each matrix of a stack has its own.
        """
        if self.whole is None:
            return local
        from torch.distributed.tensor import DTensor, Replicate, Shard

        cut, size = None, 0
        if self.batch and by_member:
            cut, size = 0, self.whole.shape[0]
        elif by_rows and self.dim is not None:
            cut, size = local.ndim - 2, self.whole.shape[self.dim]
        placements = [
            Shard(cut) if placement.is_shard() and cut is not None else Replicate()
            for placement in self.whole.placements
        ]
        shape = list(local.shape)
        if cut is not None:
            shape[cut] = size
        return DTensor.from_local(
            local,
            self.whole.device_mesh,
            placements,
            run_check=False,
            shape=torch.Size(shape),
            stride=torch.empty(shape, device="meta").stride(),
        )


def here(t: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return t.to_local() if _dtensor(t) is not None else t  # type: ignore[attr-defined]


def gradient(p: Tensor) -> Tensor:
    """This process's part of a parameter's gradient, which lies as the parameter does.

    Tensor parallelism leaves gradients of what it replicates as sums to be taken; they are taken here.
    """
    assert p.grad is not None
    whole, grad = _dtensor(p), _dtensor(p.grad)
    if whole is not None and grad is not None and whole.placements != grad.placements:
        return here(grad.redistribute(placements=whole.placements))
    return here(p.grad)


def agreed(t: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The largest over all processes that share any of some parameters out, in place."""
    groups: dict[Any, None] = {}
    for whole in (p for p in map(_dtensor, parameters) if p is not None):
        cut = (axis for axis, each in enumerate(whole.placements) if not each.is_replicate())
        groups |= dict.fromkeys(whole.device_mesh.get_group(axis) for axis in cut)
    for group in groups:
        dist.all_reduce(t, dist.ReduceOp.MAX, group=group)
    return t


def together(over: Sequence[Any], parts: Sequence[Tensor], largest: bool = False) -> list[Tensor]:
    """Add up parts of many matrices over processes, in one message for each group of processes.

    Args:
        over: For each the group that shares it out; None where it is whole.
        parts: Small tensors.
        largest: Take the largest instead.

    Returns:
        The sums, or the parts themselves where they are whole.
    """
    out = list(parts)
    shared: dict[Any, list[int]] = {}
    for i, group in enumerate(over):
        if group is not None:
            shared.setdefault(group, []).append(i)
    for group, places in shared.items():
        packed = torch.cat([out[i].flatten() for i in places])
        dist.all_reduce(packed, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM, group=group)
        for i, piece in zip(places, packed.split([out[i].numel() for i in places]), strict=True):
            out[i] = piece.view_as(out[i]).to(out[i].dtype)
    return out


def _dtensor(t: Tensor) -> Any:
    """The tensor itself where it is a DTensor; none can be before its module was imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return t if module is not None and isinstance(t, module.DTensor) else None
