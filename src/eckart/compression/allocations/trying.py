"""Put layers in a model's places for a while, and what the held-out loss is with them there.

Paper: none.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eckart.compression.pieces.piece import Piece, of_each
from eckart.nn.batches import run_model, to_device
from eckart.nn.gradients import scalar_loss
from eckart.nn.modes import evaluating
from eckart.nn.replace import put_back, replace_all


@contextmanager
def standing(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """The layers stand in their places inside; what was there stands there again after, also after an error."""
    old = replace_all(model, layers)
    try:
        yield
    finally:
        put_back(model, old)


def layers_of(pieces: Sequence[Piece], sizes: Mapping[str, int]) -> dict[str, nn.Module]:
    """The layers of all pieces at their sizes, from what they have learned."""
    built = of_each(lambda piece: piece.build(sizes[piece.label]), pieces)
    return {name: layer for layers in built for name, layer in layers.items()}


@torch.no_grad()
def mean_loss(
    model: nn.Module,
    batches: Sequence[Any],
    loss: Callable[[Any, Any], Tensor] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> float:
    """The mean loss over batches, each of equal weight.

    Args:
        model: Run in evaluation mode.
        batches: As `nn.observe` takes them.
        loss: (output, batch) → scalar; None takes the output's own.
        forward: (model, batch) → output; None feeds the batch as it is.
    """
    device = next(model.parameters()).device
    total = 0.0
    with evaluating(model):
        for batch in batches:
            batch = to_device(batch, device)
            total += float(scalar_loss((forward or run_model)(model, batch), batch, loss))
    return total / len(batches)
