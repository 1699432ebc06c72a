"""The masks of a model: find them, keep the rest of the model in evaluation, put a factor 1 + ε in each one's place.

Ours (`Dropout` and its kinds, `DropConnect`'s own) and torch's `nn.Dropout` are seen; dropout that a model calls as a
function is not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from eckart.regularizers.masks import Dropout, DropConnect
from eckart.regularizers.masks_2d import DropBlock2d
from eckart.regularizers.rates import odds

Mask = Dropout | _DropoutNd


class Perturbation(NamedTuple):
    """A mask as it was met: the variance c of its entries, the ε in their place, whether ε's first dimension is samples."""

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
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, masks drawing from torch's default generator; all as before at the end."""
    training = [(module, module.training) for module in model.modules()]
    sources = [(module, module.generator) for module in model.modules() if isinstance(module, Dropout)]
    model.eval()
    for module, _ in sources:
        module.generator = None
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for module, source in sources:
            module.generator = source


@contextmanager
def perturbed(model: nn.Module) -> Iterator[list[Perturbation]]:
    """Every mask multiplies by 1 + ε, ε = 0 that requires a gradient; the list fills as the model runs."""
    seen: list[Perturbation] = []
    on_weights = {id(module.mask) for module in model.modules() if isinstance(module, DropConnect)}

    def hook(mask: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        own = isinstance(mask, Dropout)
        shape = mask.units(output) if own else output.shape
        rate = mask.rate_for(output) if own else float(mask.p)  # type: ignore[arg-type]
        factor = torch.zeros(shape, dtype=output.dtype, device=output.device, requires_grad=True)
        seen.append(Perturbation(odds(rate), factor, id(mask) not in on_weights))
        return output * (1 + (mask.spread(factor) if own else factor))

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
