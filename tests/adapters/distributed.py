"""One of two processes that train adapters on halves of each batch; run by test_distributed.

python distributed.py MODE RANK RENDEZVOUS          MODE: single, ddp, fsdp (blocks), fsdp-layers (each layer)
"""

import os
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch import distributed as dist

from eckart.adapters import adapt, load, save
from eckart.adapters.layers.adapted import AdaptedLayer


class Block(nn.Module):
    """Two readers of one tensor, and one of what they make."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.o = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.o(self.q(x).tanh() * self.k(x))


def main(mode: str, rank: int, rendezvous: str) -> None:
    """Print the losses of three steps, and how the layers say that they are computed."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(Block(), Block())
    with torch.no_grad():
        adapt(model, "pissa", rank=2, magnitude=True, modules_to_save="1.o")
    layer: AdaptedLayer = model[0].q  # type: ignore[index,assignment]
    world = 1 if mode == "single" else 2
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    if mode == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    elif mode.startswith("fsdp"):
        from torch.distributed.fsdp import fully_shard

        mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
        for block in model:  # type: ignore[union-attr]
            for each in (block.q, block.k, block.o) if mode == "fsdp-layers" else (block,):
                fully_shard(each, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    data = torch.randn(3, 4, 5, 12, generator=torch.Generator().manual_seed(1))
    for batch in data:
        half = batch if world == 1 else batch[2 * rank : 2 * rank + 2]
        loss = model(half).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total = loss.detach() / world
        if world > 1:
            dist.all_reduce(total)
        print(f"{float(total):.6f}", flush=True)
    print(repr(layer).splitlines()[1].strip(), flush=True)
    check_saved(model, mode, rank, Path(f"{rendezvous}-saved"), data[0])
    if world > 1:
        dist.destroy_process_group()


def check_saved(model: nn.Module, mode: str, rank: int, folder: Path, x: Tensor) -> None:
    """The files of one process, or of all where the model is sharded, hold the whole adapter."""
    with torch.no_grad():
        expected = model(x)
    sharded = mode.startswith("fsdp")
    if rank and not sharded:
        return
    save(model, folder)
    torch.manual_seed(0)
    again = nn.Sequential(Block(), Block())
    load(folder, again)
    torch.testing.assert_close(again(x), expected)
    if sharded:
        try:
            save(model, folder)
        except FileExistsError:
            return
        raise AssertionError("a folder that is there was written again")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    sys.stdout.flush()
    os._exit(0)  # gloo's threads at times abort a process that ends by itself
