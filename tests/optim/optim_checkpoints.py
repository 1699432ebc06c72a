"""Distributed checkpoints (see optim_processes): what some processes save others load, and all go on alike."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from optim_models import Experts, optimizer_for, train
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard

from eckart.optim import METHODS, LowRankOptimizer

SIZES = (2, 1, 4)
MOVES = ((2, 1), (2, 4), (1, 2), (4, 2))
BEFORE, AFTER = 2, 3  # bases are renewed by the fourth step
SOME = ("q-galore", "fira", "frugal", "dion")  # for what hangs on the kinds of tensors alone
Contestants = dict[str, tuple[nn.Module, LowRankOptimizer]]


class Small(nn.Module):
    """A stack of experts, and a matrix of five rows, of which the last of four processes has none."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = Experts()
        self.last = nn.Linear(10, 5)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5)

    def forward(self, x: Tensor) -> Tensor:  # (B, 8) -> ()
        return (self.last(self.experts(x)) - x[:, :5]).square().mean()


def batches(steps: slice) -> list[Tensor]:
    """The same each time, in all processes."""
    return list(torch.randn(8, 6, 8, generator=torch.Generator().manual_seed(4))[steps])


def contestants(world: int, methods: Iterable[str] = METHODS) -> Contestants:
    """A model and an optimizer for each method; the basis on the side that FSDP leaves whole."""
    made = {}
    for method in methods:
        each = Small()
        if world > 1:
            fully_shard(each, mesh=dist.device_mesh.init_device_mesh("cpu", (world,)))
        made[method] = each, optimizer_for(each, method, side="right")
    return made


def state_of(each: Contestants) -> dict[str, Any]:
    """What a checkpoint holds."""
    return {
        method: {"model": get_model_state_dict(one), "optimizer": get_optimizer_state_dict(one, optimizer)}
        for method, (one, optimizer) in each.items()
    }


def whole_state(each: Contestants) -> dict[str, Tensor]:
    """The optimizers' states, put together on rank 0."""
    found = {}
    for method, (one, optimizer) in each.items():
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        full: Any = get_optimizer_state_dict(one, optimizer, options=options)
        states = full.get("state", {}).items()  # other ranks have none
        found |= {f"{method}/{p}/{key}": t.clone() for p, state in states for key, t in state.items()}
    return found


def go_on(each: Contestants, steps: slice) -> dict[str, list[float]]:
    return {method: train(one, optimizer, batches(steps)) for method, (one, optimizer) in each.items()}


def save(folder: Path, world: int) -> dict[str, Any]:
    each = contestants(world)
    go_on(each, slice(BEFORE))
    dcp.save(state_of(each), checkpoint_id=folder, no_dist=world == 1)
    return {"state": whole_state(each), "losses": go_on(each, slice(BEFORE, BEFORE + AFTER))}


def load(folder: Path, world: int) -> dict[str, Any]:
    each = contestants(world)
    read = state_of(each)  # which fills each optimizer's state by a step of zeros
    dcp.load(read, checkpoint_id=folder, no_dist=world == 1)
    for method, (one, optimizer) in each.items():
        set_model_state_dict(one, read[method]["model"])
        set_optimizer_state_dict(one, optimizer, read[method]["optimizer"])
    return {"state": whole_state(each), "losses": go_on(each, slice(BEFORE, BEFORE + AFTER))}


def reshard(rank: int, world: int) -> dict[str, Any]:
    """Save on 2, on 1 and on 4 processes, and load on other numbers of them: groups of processes of their own."""
    name = [tempfile.mkdtemp() if rank == 0 else ""]
    dist.broadcast_object_list(name)
    folder, told = Path(name[0]), {}
    dist.destroy_process_group()
    for number, (action, source, size) in enumerate(
        [("save", size, size) for size in SIZES] + [("load", source, size) for source, size in MOVES]
    ):
        if rank >= size:
            continue
        if size > 1:
            meeting = f"file://{folder / f'meet{number}'}"
            dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
        told[f"{action} {source} {size}"] = globals()[action](folder / str(source), size)
        if size > 1:
            dist.destroy_process_group()
    dist.init_process_group("gloo", init_method=f"file://{folder / 'end'}", rank=rank, world_size=world)
    return told


def from_one_file(rank: int, world: int) -> dict[str, Any]:
    """A whole state dict on rank 0 goes to all; a piece of another process is refused."""
    each, again = contestants(world, SOME), contestants(world, SOME)
    go_on(each, slice(BEFORE))
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    scatter = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    for method, (one, optimizer) in each.items():
        other, other_optimizer = again[method]
        weights, state = (
            get_model_state_dict(one, options=options),
            get_optimizer_state_dict(one, optimizer, options=options),
        )
        set_model_state_dict(other, weights, options=scatter)
        set_optimizer_state_dict(other, other_optimizer, state, options=scatter)
    told = [go_on(some, slice(BEFORE, BEFORE + AFTER)) for some in (each, again)]
    one, optimizer = each["fira"]
    piece = optimizer.state_dict()
    piece["state"] = {
        i: {key: t.to_local() if hasattr(t, "to_local") else t for key, t in state.items()}
        for i, state in piece["state"].items()
    }
    try:
        again["fira"][1].load_state_dict(piece)
    except ValueError as error:
        return {"losses": told, "error": str(error)}
    return {"losses": told, "error": "none"}
