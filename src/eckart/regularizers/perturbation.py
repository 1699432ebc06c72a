"""The masks of a model: find them, let them draw from one generator, put a factor 1 + ε in each one's place.

Ours (`Dropout` and its kinds, `DropConnect`'s own) and torch's `nn.Dropout` are seen; dropout that a model calls as a
function is not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from eckart.nn.modes import evaluating
from eckart.regularizers.masks import DropConnect, Dropout
from eckart.regularizers.masks_2d import DropBlock2d
from eckart.regularizers.rates import odds

Mask = Dropout | _DropoutNd


class Perturbation(NamedTuple):
    """A mask as it was met: the variance c of its entries, the ε in their place, whether ε has samples."""

    variance: float
    factor: Tensor
    batched: bool


def masks(model: nn.Module) -> list[Mask]:
    """The mask modules of a model, or a ValueError if it has none."""
    found = [module for module in model.modules() if isinstance(module, Mask)]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no mask module; use eckart.regularizers' or nn.Dropout "
            "(dropout called as a function is not seen)"
        )
    return found


@contextmanager
def drawing_by_default(model: nn.Module) -> Iterator[None]:
    """The model's masks draw from torch's default generator, and from their own again at the end."""
    sources = [(mask, mask.generator) for mask in model.modules() if isinstance(mask, Dropout)]
    for mask, _ in sources:
        mask.generator = None
    try:
        yield
    finally:
        for mask, source in sources:
            mask.generator = source


@contextmanager
def perturbed(model: nn.Module) -> Iterator[list[Perturbation]]:
    """Every mask multiplies by 1 + ε, ε = 0 that requires a gradient; the list fills as the model runs."""
    seen: list[Perturbation] = []
    on_weights = {id(module.mask) for module in model.modules() if isinstance(module, DropConnect)}

    def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        mask = module if isinstance(module, Dropout) else Dropout(cast(nn.Dropout, module).p)
        factor = torch.zeros(mask.units(output), dtype=output.dtype, device=output.device, requires_grad=True)
        seen.append(Perturbation(odds(mask.rate_for(output)), factor, id(module) not in on_weights))
        return output * (1 + mask.spread(factor))

    handles = []
    try:
        for mask in masks(model):
            if isinstance(mask, DropBlock2d) or not isinstance(mask, Dropout | nn.Dropout):
                raise ValueError(f"{mask} drops entries together; only monte_carlo_penalty can tell what it adds")
            handles.append(mask.register_forward_hook(hook))
        with evaluating(model):
            yield seen
    finally:
        for handle in handles:
            handle.remove()
