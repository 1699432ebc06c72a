"""A small model whose layers share weights, for steps in the backward pass: alone, and in two processes."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from optim_models import choices
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from eckart.optim import LowRankOptimizer, step_in_backward

SOME = ("galore", "fira", "apollo-mini")


class Tied(nn.Module):
    """A table that is also the head, two layers that share a weight, and vectors."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.second.weight = self.first.weight
        self.wide = nn.Linear(8, 20)
        self.back = nn.Linear(20, 8)
        self.norm = nn.LayerNorm(8)
        self.reentrant = reentrant

    def _block(self, x: Tensor) -> Tensor:
        return self.back(self.wide(self.second(self.first(x).tanh())).relu())

    def forward(self, tokens: Tensor) -> Tensor:  # (B, T) -> ()
        x = self.table(tokens)
        for _ in range(2):
            x = self._block(x) if self.reentrant is None else checkpoint(self._block, x, use_reentrant=self.reentrant)
        logits = self.norm(x) @ self.table.weight.T
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())


def batches(count: int) -> Iterator[Tensor]:
    source = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield torch.randint(11, (4, 5), generator=source)


def optimizer_of(model: nn.Module, method: str, **options: Any) -> LowRankOptimizer:
    return LowRankOptimizer(model, **{"lr": 1e-2, "weight_decay": 0.01, **choices(method), **options})


def sharded(rank: int, world: int) -> dict[str, Any]:
    """Train under fully_shard in both modes (see optim_processes), and clip; what DDP's replicas are told."""
    torch.manual_seed(0)
    start = Tied()
    told: dict[str, Any] = {"weights": {}, "norms": {}, "replica": "", "freed": True}
    try:
        step_in_backward(optimizer_of(copy.deepcopy(start), "galore"))
    except ValueError as error:
        told["replica"] = str(error)
    for method in SOME:
        told["weights"][method] = []
        for layered in (False, True):
            model = _shared_out(start)
            optimizer = optimizer_of(model, method)
            if layered:
                step_in_backward(optimizer)
            for tokens in batches(5):
                model(tokens[2 * rank : 2 * rank + 2]).backward()
                told["freed"] &= layered == all(p.grad is None for p in model.parameters())
                optimizer.step()
                optimizer.zero_grad()
            told["weights"][method].append([p.detach().full_tensor() for p in model.parameters()])  # type: ignore[attr-defined]
        model = _shared_out(start)
        optimizer = optimizer_of(model, method)
        step_in_backward(optimizer, max_grad_norm=0.05)
        for tokens in batches(3):
            model(tokens[2 * rank : 2 * rank + 2]).backward()
            optimizer.step()
        told["norms"][method] = torch.stack([state["grad_norm"] for state in optimizer.state.values()])
    return told


def _shared_out(start: Tied) -> Tied:
    model = copy.deepcopy(start)
    for part in (model.wide, model.back):
        fully_shard(part)
    fully_shard(model)
    return model
