"""Recovery block by block: the compressed layers of each are trained to give what the dense block gives.

    minimise mean_t ‖block′(x̂_t) − block(x_t)‖² / ‖block(x_t)‖²

x_t the dense model's hidden states before the block, x̂_t those of the compressed one, whose earlier blocks are done.
The error is relative for each token: the next block normalises every token, and a few have a hundred times the norm of
the rest. Only one block's activations and gradients are held, and the hidden states of all batches twice.

Cost: (2 + 3 passes) forward passes over the batches.
Paper: AA-SVD's block refinement; theirs makes a fixed number of steps on an absolute error, ours stops on held-out
text.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eckart.lm.calibration import Calibration
from eckart.lm.compressed.recovery_steps import (
    Best,
    Trained,
    clip,
    endless,
    parameters_of,
    rate,
    require_finite,
    require_positive,
)
from eckart.nn import Progress
from eckart.nn.batches import Padding
from eckart.nn.blocks import Chain, find_chain


class _Recorded(nn.Module):
    """A block that records its gradients' graph although its caller switched that off."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.enable_grad():
            return self.block(*args, **kwargs)


class _Walk:
    """Some batches on their way through both models, block by block."""

    def __init__(self, dense: nn.Module, names: Sequence[str], batches: Sequence[Any]) -> None:
        self.chain = Chain(dense, names, batches)
        self.paddings = [Padding(batch) for batch in self.chain.batches]
        self.hidden = list(self.chain.hidden)  # of the compressed model
        self.wanted = list(self.chain.hidden)  # of the dense model
        self.targets: list[Tensor] = []  # what the dense block gives

    def enter(self, block: int) -> None:
        """Find what the dense block gives."""
        self.targets = [self.chain.run(block, number, each) for number, each in enumerate(self.wanted)]

    def error(self, block: int, number: int, module: nn.Module) -> Tensor:
        """The relative error of a compressed block on one batch."""
        found = self.chain.run(block, number, self.hidden[number], module)
        rows, wanted = (self.paddings[number].rows(each) for each in (found, self.targets[number]))
        tiny = torch.finfo(wanted.dtype).tiny
        return ((rows - wanted).square().sum(-1) / wanted.square().sum(-1).clamp_min(tiny)).mean()

    def mean_error(self, block: int, module: nn.Module) -> float:
        """Its mean over all batches."""
        return sum(float(self.error(block, number, module)) for number in range(len(self.hidden))) / len(self.hidden)

    def leave(self, block: int, module: nn.Module) -> None:
        """Both models go on to the next block."""
        self.hidden = [self.chain.run(block, number, each, module) for number, each in enumerate(self.hidden)]
        self.wanted = self.targets


def refine_blocks(
    model: nn.Module,
    data: Calibration,
    names: list[str],
    *,
    dense: nn.Module,
    passes: int = 4,
    lr: float = 1e-3,
    seed: int = 0,
    progress: Progress | None = None,
) -> Trained:
    """Train the compressed layers block by block.

    Args:
        model: The compressed model.
        data: What is fitted on; a block is done when its error on the held-out sequences rises.
        names: The compressed layers; those outside the blocks stay as they are.
        dense: The dense model.
        passes: Over the batches for each block, at most.
        lr: Largest learning rate of Adam, as a share of the root mean square of each parameter.
        seed: Of the order of the batches.
        progress: Called as progress(done, total, label).

    Returns:
        Steps that were made, how many numbers trained, and for each block its held-out error before and after.

    Raises:
        ValueError: The model has no chain of blocks with compressed layers, or a number is not positive.
        RuntimeError: The loss is no number.
    """
    require_positive(passes=passes, lr=lr)
    blocks = find_chain(dense, data.batches[0])
    inside = [name for name in names for path in blocks or () if name.startswith(f"{path}.")]
    if blocks is None or not inside:
        raise ValueError("model: no chain of blocks with compressed layers was found in it; recover by 'lora'")
    seen, held_out = (_Walk(dense, blocks, batches) for batches in (data.batches, data.held_out))
    places = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    model.requires_grad_(False)
    history, steps, count = [], 0, 0
    for index, path in enumerate(blocks):
        block = model.get_submodule(path)
        for walk in (seen, held_out):
            walk.enter(index)
        mine = parameters_of(model, [name for name in inside if name.startswith(f"{path}.")])
        mine = [p for p in mine if places[id(p)] == 1]  # what other layers hold too is not this block's alone
        if mine:
            row, made = _refine(index, block, mine, seen, held_out, passes, lr, seed)
            history.append({"block": path} | row)
            steps, count = steps + made, count + sum(p.numel() for p in mine)
        for walk in (seen, held_out):
            walk.leave(index, block)
        if progress is not None:
            progress(index + 1, len(blocks), "recovering")
    return steps, count, history


def _refine(
    index: int,
    block: nn.Module,
    parameters: list[nn.Parameter],
    seen: _Walk,
    held_out: _Walk,
    passes: int,
    lr: float,
    seed: int,
) -> tuple[dict[str, Any], int]:
    """Train one block, and keep what is best on held-out text."""
    sizes = [float(p.detach().square().mean().sqrt()) or 1.0 for p in parameters]
    optimizer = torch.optim.Adam([{"params": [p]} for p in parameters])
    before = held_out.mean_error(index, block)
    best, recorded, number, made = Best(parameters, before), _Recorded(block), 0, 0
    order, total = endless(len(seen.hidden), seed), passes * len(seen.hidden)
    for p in parameters:
        p.requires_grad_(True)
    while made < passes:
        made += 1
        for _ in range(len(seen.hidden)):
            for group, size in zip(optimizer.param_groups, sizes, strict=True):
                group["lr"] = lr * size * rate(number, total)
            loss = seen.error(index, next(order), recorded)
            require_finite(loss, number, lr)
            loss.backward()
            clip(parameters)
            optimizer.step()
            optimizer.zero_grad()
            number += 1
        if not best.offer(held_out.mean_error(index, block)):
            break
    best.restore()
    for p in parameters:
        p.requires_grad_(False)
    return {"before": before, "after": best.loss, "passes": made}, number
