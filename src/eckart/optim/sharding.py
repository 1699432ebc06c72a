"""How one parameter lies over processes: the part that is here, sums over the others, and states that lie alike.

A parameter of FSDP2 is a DTensor with its rows (dimension 0) shared out; of tensor parallelism, its rows or columns.
The dimension that is shared out must be the one that the basis is not on: then G V, the moments and the update are
local, and only what is summed over rows (the next basis, norms) travels. Replicas (DDP, the outer dimension of HSDP)
hold the same and send nothing here.

Paper: none.
"""

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Shards:
    """Where a parameter's parts are.

    Args:
        parameter: A tensor, or a DTensor with at most one dimension shared out.
        stack: Whether dimension 0 counts matrices; where that is what is shared out, each matrix is whole somewhere.

    Raises:
        ValueError: Two dimensions are shared out, or a part is a sum that was not taken yet.
    """

    def __init__(self, parameter: Tensor, stack: bool = False) -> None:
        self.whole = _dtensor(parameter)
        self.dim: int | None = None  # the parameter's dimension that is shared out, unless whole matrices are
        self.batch = False  # whether whole matrices of a stack are shared out
        self._groups: list[Any] = []
        if self.whole is None:
            return
        for axis, placement in enumerate(self.whole.placements):
            if placement.is_shard():
                dim = placement.dim
                if self.dim not in (None, dim) or (self.batch and dim):
                    raise ValueError(
                        f"params: two dimensions of {tuple(parameter.shape)} are shared out between processes "
                        f"({self.whole.placements}); one is supported"
                    )
                if stack and dim == 0:
                    self.batch = True
                    continue
                self.dim = dim
                self._groups.append(self.whole.device_mesh.get_group(axis))
            elif not placement.is_replicate():
                raise ValueError(f"params: {placement} of {tuple(parameter.shape)} is not supported; use fully_shard")

    @property
    def over_rows(self) -> bool:
        """Whether a sum over rows of X is a sum over processes."""
        return bool(self._groups)

    def here(self, t: Tensor) -> Tensor:
        """The part of a tensor that this process holds."""
        return t.to_local() if _dtensor(t) is not None else t  # type: ignore[attr-defined]

    def sum(self, t: Tensor) -> Tensor:
        """Add up over the processes that share rows out, in place."""
        for group in self._groups:
            dist.all_reduce(t, group=group)
        return t

    def max(self, t: Tensor) -> Tensor:
        """The largest over the processes, in place."""
        for group in self._groups:
            dist.all_reduce(t, op=dist.ReduceOp.MAX, group=group)
        return t

    def gather(self, X: Tensor) -> Tensor:  # (..., p here, q) -> (..., p, q)
        """All rows of X. Sends them."""
        return self.place(X, by_rows=True).full_tensor() if self.over_rows else X  # type: ignore[attr-defined]

    def place(self, local: Tensor, by_rows: bool) -> Tensor:
        """A state as it is kept: cut as the parameter is where it has a row for each row of X, else the same for all.

        Args:
            local: (..., p here, k) or (..., q, k).
            by_rows: Whether its rows are those of X.
        """
        if self.whole is None:
            return local
        from torch.distributed.tensor import DTensor, Replicate, Shard

        cut, size = None, 0
        if self.batch:
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


def _dtensor(t: Tensor) -> Any:
    """The tensor itself where it is a DTensor; none can be before its module was imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return t if module is not None and isinstance(t, module.DTensor) else None
