"""Compressed layers as chains of plain linear layers for a while, so that adapters can sit on their factors.

    y = B(A x) + b   →   outer(inner(x)) + b,    inner.weight = A, outer.weight = B (P and C of a pivoted layer)

An adapter on W itself cannot be merged into a product of the same rank; one on each factor can, exactly.
Paper: SVD-LLM (arXiv 2403.07378) puts LoRA on its two factors too, on one after the other; here on both at once.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eckart.nn import FactoredLinear, PivotedLinear, replace
from eckart.nn.compressed_linear import picked
from eckart.nn.summed import SumLinear

FACTORS = {FactoredLinear: ("A", "B"), PivotedLinear: ("C", "P")}


class _Opened(nn.Module):
    """One compressed layer as two linear ones that hold its own parameters; the rest of it runs beside them."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.part = (layer.first if isinstance(layer, SumLinear) else layer,)  # in a tuple: no child
        self.rest = layer.second if isinstance(layer, SumLinear) else None
        self.bias = self.part[0].bias
        self.order = getattr(self.part[0], "order", None)
        self.inner, self.outer = (_linear(getattr(self.part[0], name)) for name in self.names)

    @property
    def names(self) -> tuple[str, str]:
        """The part's parameters that the inner and the outer layer hold."""
        return FACTORS[type(self.part[0])]

    def forward(self, x: Tensor) -> Tensor:  # (..., n) -> (..., m)
        z = self.inner(x)
        y = self.outer(z)
        if self.order is not None:
            y = picked(torch.cat((z, y), -1), self.order)
        y = y if self.bias is None else y + self.bias
        return y if self.rest is None else y + self.rest(x)

    @torch.no_grad()
    def write_back(self) -> None:
        """Give the layer's parameters the values that the linear layers have by now."""
        for name, linear in zip(self.names, (self.inner, self.outer), strict=True):
            factor = getattr(self.part[0], name)
            factor.copy_(linear.weight)
            linear.weight = factor


@contextmanager
def opened(model: nn.Module, names: Collection[str]) -> Iterator[list[str]]:
    """Compressed layers are chains of linear layers inside, and themselves again after, with what was learned.

    Args:
        model: The model.
        names: Its compressed layers; a plain nn.Linear among them (a smaller one) stays as it is.

    Yields:
        The names of the linear layers that can be adapted: a basis that several layers share is not among them, nor are
        layers of kinds that have no factors.

    Example:
        >>> model = nn.Sequential(FactoredLinear(torch.ones(3, 1), torch.ones(1, 2)))
        >>> with opened(model, ["0"]) as found:
        ...     _ = model[0].outer.weight.data.mul_(2)
        >>> found, model[0].B.flatten().tolist()
        (['0.inner', '0.outer'], [2.0, 2.0, 2.0])
    """
    held = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    layers: dict[str, tuple[nn.Module, _Opened]] = {}
    found: list[str] = []
    try:
        for name in names:
            layer: Any = model.get_submodule(name)
            part: Any = layer.first if isinstance(layer, SumLinear) else layer
            if type(part) is nn.Linear:
                found.append(name)
            elif type(part) in FACTORS and part.rank > 0:
                place = _Opened(layer)
                layers[name] = layer, place
                alone = held[id(place.inner.weight)] == 1
                replace(model, name, place)
                found += [f"{name}.inner"] * alone + [f"{name}.outer"] * (place.outer.weight.numel() > 0)
        yield found
    finally:
        for name, (layer, place) in layers.items():
            place.write_back()
            replace(model, name, layer)


def _linear(W: nn.Parameter) -> Any:  # (m, n)
    """A linear layer that holds a parameter, not a copy of it."""
    linear = nn.Linear(W.shape[1], W.shape[0], bias=False, device="meta")
    linear.weight = W
    return linear
