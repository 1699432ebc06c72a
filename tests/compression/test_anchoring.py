"""Layers fitted to a compressed prefix make up for what it lost, once: each stage of a block sees the stages before."""

import torch
from torch import Tensor, nn

from eckart import compress
from eckart.nn.crossing import call_order


class Block(nn.Module):
    """A residual block of several layers in a row, and one beside the first."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(2))
        self.rest = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first[0](x) + self.first[1](x)
        for layer in self.rest:
            y = layer(y)
        return x + y


class Chain(nn.Module):
    """Blocks in order."""

    def __init__(self, width: int = 24, blocks: int = 4, depth: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, depth) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def _batches() -> list[Tensor]:
    scale = torch.logspace(0, -1.5, 24)
    return [torch.randn(200, 24, generator=torch.Generator().manual_seed(i)) * scale for i in range(4)]


def _error(method: str, keep: float) -> float:
    torch.manual_seed(0)
    model, batches = Chain(), _batches()
    exact = [model(batch).detach() for batch in batches]
    compress(model, batches, keep=keep, method=method, allocation="uniform", shrink=0.0)
    lost = sum(float((model(x).detach() - y).square().sum()) for x, y in zip(batches, exact, strict=True))
    return (lost / sum(float(y.square().sum()) for y in exact)) ** 0.5


def test_a_chain_of_fits_to_the_prefix_loses_less_than_fits_to_dense_inputs() -> None:
    for keep in (0.8, 0.5, 0.3):
        assert _error("aa-svd", keep) < 0.97 * _error("svd-llm", keep)


class Experts(nn.Module):
    """A residual block of two experts, of which the first number of a batch picks one."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.experts[int(x[0, 0] > 0)](x)


def test_an_expert_that_is_idle_in_some_batches_is_fitted_stage_by_stage_too() -> None:
    torch.manual_seed(0)
    model, batches = nn.Sequential(), [batch.clone() for batch in _batches()]
    for sign, batch in zip((1, 1, -1, -1), batches, strict=True):
        batch[0, 0] = 10.0 * sign  # the residual keeps its sign through all blocks
    model.blocks = nn.ModuleList(Experts() for _ in range(3))
    model.forward = lambda x: model.blocks[2](model.blocks[1](model.blocks[0](x)))
    plan = compress(model, batches, keep=0.5, method="aa-svd", dry_run=True)
    layers = plan.layers()
    turned = compress(model, batches[::-1], keep=0.5, method="aa-svd", dry_run=True).layers()
    assert layers.keys() == turned.keys()
    for name, layer in layers.items():
        torch.testing.assert_close(layer.weight, turned[name].weight, rtol=1e-3, atol=1e-4)


def test_layers_that_read_the_same_are_fitted_together_in_the_order_of_their_calls() -> None:
    block = Block(4, 2)
    names = ["rest.1", "first.1", "rest.0", "first.0", "absent"]
    block.add_module("absent", nn.Linear(4, 4))
    found = call_order(block, names, lambda block: block(torch.randn(3, 4)))
    assert found == [["first.0", "first.1"], ["rest.0"], ["rest.1"]]
