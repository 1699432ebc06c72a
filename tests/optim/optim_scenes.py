"""What processes do together (see optim_processes): each scene returns tensors and strings, which the tests compare.

Gradients are made here, the same in all processes to the bit: a part of low rank that drifts, and noise.
"""

from typing import Any

import torch
from optim_models import choices
from optim_processes import Traffic
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from eckart.optim import METHODS, LowRankOptimizer

SHAPES = ((13, 6), (8, 13), (5, 9))  # of two processes the first has more rows, of four the last has none of 5
STEPS, GAP = 5, 2
SHOWN = ("galore", "fira", "apollo-mini", "q-galore", "ldadam", "dion")
PARALLEL = ("galore", "fira", "apollo", "ldadam")


def options(method: str) -> dict[str, Any]:
    """A row with refreshes within a few steps."""
    return {"lr": 1e-2, **choices(method, gap=GAP)}


def start(shapes: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    """Weights."""
    source = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=source) for shape in shapes]


def gradients(step: int, shapes: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    """The gradients of a step."""
    fixed, fresh = torch.Generator().manual_seed(7), torch.Generator().manual_seed(100 + step)
    found = []
    for shape in shapes:
        m, n = shape[-2:]
        A, B = (torch.randn(*shape[:-2], size, 2, generator=fixed) for size in (m, n))
        drift, noise = torch.randn(A.shape, generator=fresh), torch.randn(shape, generator=fresh)
        found.append(0.01 * ((A + 0.1 * step * drift) @ (B * torch.tensor([3.0, 1.5])).mT + 0.3 * noise))
    return found


def alone(method: str, shapes: tuple[tuple[int, ...], ...] = SHAPES, side: str = "right", **more: Any) -> list[Tensor]:
    """What one process makes of the weights."""
    params = [nn.Parameter(W) for W in start(shapes)]
    optimizer = LowRankOptimizer(params, side=side, **options(method), **more)
    for step in range(STEPS):
        for p, G in zip(params, gradients(step, shapes), strict=True):
            p.grad = G
        optimizer.step()
    return [p.detach() for p in params]


def train(
    params: list[Any], shapes: tuple[tuple[int, ...], ...], method: str, **more: Any
) -> tuple[LowRankOptimizer, list[list[tuple[str, int]]]]:
    """Steps of DTensors; gives the optimizer and the messages of each step."""
    optimizer = LowRankOptimizer(params, **options(method), **more)
    told = []
    for step in range(STEPS):
        for p, G in zip(params, gradients(step, shapes), strict=True):
            p.grad = distribute_tensor(G.to(p.dtype), p.device_mesh, p.placements)
        with Traffic() as traffic:
            optimizer.step()
        told.append(traffic.messages)
    return optimizer, told


def sharded(mesh: DeviceMesh, dtype: torch.dtype = torch.float32) -> list[Any]:
    """The weights of layers that fully_shard has shared out."""
    model = nn.Sequential(*(nn.Linear(n, m, bias=False, dtype=dtype) for m, n in SHAPES))
    with torch.no_grad():
        for layer, W in zip(model, start(SHAPES), strict=True):
            layer.weight.copy_(W)  # type: ignore[union-attr]
    fully_shard(model, mesh=mesh)
    return [layer.weight for layer in model]


def _full(params: list[Any]) -> list[Tensor]:
    return [p.detach().full_tensor().clone() for p in params]


def rows(rank: int, world: int) -> dict[str, Any]:
    """Rows under FSDP2, with the side left to it: all of them in two processes."""
    mesh, told = init_device_mesh("cpu", (world,)), {}
    for method in METHODS if world == 2 else SHOWN:
        params = sharded(mesh)
        optimizer, traffic = train(params, SHAPES, method)
        bases = [optimizer.state[p].get("basis") for p in params]
        told[method] = {
            "weights": _full(params),
            "sides": [int(optimizer.state[p]["side"]) for p in params],
            "bases": [V.to_local().clone() for V in bases if V is not None],
            "here": [p.to_local().shape[0] for p in params],
            "traffic": traffic,
        }
    return told


def gathers(rank: int, world: int) -> dict[str, Any]:
    """Projectors that need the whole gradient."""
    mesh = init_device_mesh("cpu", (world,))
    return {name: train(sharded(mesh), SHAPES, "galore", projector=name)[1] for name in ("svd", "range")}


def hybrid(rank: int, world: int) -> dict[str, Any]:
    """HSDP: replicas of shares; in float32, in bfloat16, which is rounded at random, and beside a parameter of FSDP."""
    mesh, told = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard")), {}
    flat = init_device_mesh("cpu", (world,))
    for method in SHOWN:
        params = sharded(mesh)
        train(params, SHAPES, method)
        low = sharded(mesh, torch.bfloat16)
        train(low, SHAPES, method)
        mixed = [sharded(flat)[0], *sharded(mesh)[1:]]
        train(mixed, SHAPES, method)
        told[method] = {
            "weights": _full(params),
            "mixed": _full(mixed),
            "here": [p.detach().to_local().clone() for p in params],
            "bfloat16": [p.detach().to_local().clone() for p in low],
        }
    return told


def net() -> nn.Sequential:
    """Three layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 13), nn.Tanh(), nn.Linear(13, 13), nn.Tanh(), nn.Linear(13, 4))


def learn(model: nn.Module, method: str, part: slice = slice(None), **more: Any) -> list[Tensor]:
    """The losses of steps by the backward pass, on a part of each batch."""
    return losses_of(model, LowRankOptimizer(model, **options(method), **more), part)


def losses_of(model: nn.Module, optimizer: LowRankOptimizer, part: slice = slice(None)) -> list[Tensor]:
    """The same of an optimizer that is there."""
    dtype = next(model.parameters()).dtype
    source, losses = torch.Generator().manual_seed(3), []
    for _ in range(STEPS):
        x, y = (torch.randn(8, size, generator=source).to(dtype) for size in (8, 4))
        optimizer.zero_grad()
        loss = (model(x[part]) - y[part]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach().float())
    return losses


def loops(rank: int, world: int) -> dict[str, Any]:
    """Training loops on halves of a batch: fully_shard layer by layer, and DDP, in float32 and bfloat16."""
    half, told = slice(4 * rank, 4 * rank + 4), {}
    for method in SHOWN:
        model = net()
        for layer in model:
            fully_shard(layer)
        fully_shard(model)
        losses = learn(model, method, half)
        replica = nn.parallel.DistributedDataParallel(net())
        ddp = learn(replica, method, half)
        low = nn.parallel.DistributedDataParallel(net().bfloat16())
        learn(low, method, half)
        told[method] = {
            "fsdp": _mean(losses),
            "ddp": _mean(ddp),
            "replica": [p.detach() for p in replica.parameters()],
            "bfloat16": [p.detach() for p in low.parameters()],
        }
    return told


def _mean(losses: list[Tensor]) -> list[float]:
    total = torch.stack(losses)
    dist.all_reduce(total)
    return (total / dist.get_world_size()).tolist()


def two_layers() -> nn.Sequential:
    """Of which tensor parallelism cuts the columns and the rows."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4))


def tensor_parallel(rank: int, world: int) -> dict[str, Any]:
    """Columns of the first layer and rows of the second are shared out; gradients of what is replicated are sums."""
    mesh = init_device_mesh("cpu", (world,))
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    told: dict[str, Any] = {}
    for method in PARALLEL:
        model = two_layers()
        parallelize_module(model, mesh, plan)
        optimizer = LowRankOptimizer(model.parameters(), **options(method))
        losses = [loss.item() for loss in losses_of(model, optimizer)]
        told[method] = {"losses": losses, "sides": [int(optimizer.state[model[i].weight]["side"]) for i in (0, 2)]}
    p = nn.Parameter(DTensor.from_local(torch.ones(3), mesh, [Replicate()]))
    p.grad = DTensor.from_local(torch.tensor([1.0, -1.0, 0.0]) * (2 * rank - 0.5), mesh, [Partial()])  # −.5 + 1.5
    LowRankOptimizer([p], lr=0.1).step()
    told["partial"] = p.detach().to_local()
    return told


STACKS = {"members": ((3, 6, 5), 0), "one member": ((1, 6, 5), 0), "rows": ((3, 7, 5), 1), "columns": ((2, 6, 5), 2)}


def stacks(rank: int, world: int) -> dict[str, Any]:
    """Stacks of experts, shared out by whole matrices or along rows or columns of each."""
    mesh, told = init_device_mesh("cpu", (world,)), {}
    for name, (shape, dim) in STACKS.items():
        for method in METHODS:
            params = [nn.Parameter(distribute_tensor(start((shape,))[0], mesh, [Shard(dim)]))]
            optimizer, traffic = train(params, (shape,), method, stack=True, side="left" if dim == 2 else "right")
            told[f"{name} {method}"] = {"weights": _full(params), "traffic": traffic}
            told[f"{name} {method}"]["gap"] = int(optimizer.state[params[0]].get("gap", torch.tensor(0)))
    return told


def refusals(rank: int, world: int) -> dict[str, Any]:
    """What can't be, told by every process alike."""
    mesh, told = init_device_mesh("cpu", (world,)), {}
    params = sharded(mesh)
    for side in ("left", "smaller"):
        told[side] = _message(lambda side=side: LowRankOptimizer(params, rank=2, side=side))
    optimizer = LowRankOptimizer(params, rank=2)
    before = _full(params)
    for p, G in zip(params, gradients(0, SHAPES), strict=True):
        if p is params[1] and rank == world - 1:  # a part that only this process holds
            G[-1, 0] = torch.nan
        p.grad = distribute_tensor(G, mesh, p.placements, src_data_rank=None)
    told["nan"] = _message(optimizer.step)
    told["same"] = all(torch.equal(a, b) for a, b in zip(before, _full(params), strict=True)) and not optimizer.state
    kernel = nn.Parameter(distribute_tensor(torch.ones(4, 4, 3), mesh, [Shard(1)]))
    told["kernel"] = _message(lambda: LowRankOptimizer([kernel], rank=2))
    if world == 4:
        square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tensor"))
        both = nn.Parameter(distribute_tensor(torch.ones(8, 8), square, [Shard(0), Shard(1)]))
        told["both"] = _message(lambda: LowRankOptimizer([both], rank=2))
        layer = nn.Sequential(nn.Linear(8, 8, bias=False))
        parallelize_module(layer, square["tensor"], {"0": ColwiseParallel()})
        fully_shard(layer, mesh=square["fsdp"])
        told["strided"] = _message(lambda: LowRankOptimizer(layer, rank=2))
    return told


def _message(call: Any) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""
