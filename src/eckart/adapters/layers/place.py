"""Where adapters sit: one matrix of a model with its named adapters, and which of them are active.

A layer that is called as a module is wrapped (`AdaptedLayer`); a bare parameter (experts, fused attention weights) is
parametrized (`AdaptedWeight`). Both are places, found by `places`.
"""

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from eckart.adapters.adapter import Adapter
from eckart.adapters.layers.magnitude import row_factor
from eckart.nn import Matrix


class Place(nn.Module):
    """One adapted matrix.

    Args:
        matrix: The matrix, as `nn.matrices` gave it before anything was adapted.
    """

    def __init__(self, matrix: Matrix) -> None:
        super().__init__()
        self.name = matrix.name
        self.kind = matrix.kind
        self.shape = matrix.shape
        self.stack = matrix.stack
        self.transposed = matrix.transposed
        self.tied = matrix.tied  # other places of the same weight, which keep it as it is
        self.aliases: tuple[str, ...] = ()  # other paths to the same module, adapted with it
        self.read = False  # whether the weight is read by other code, not applied by a module that is called
        self.adapters = nn.ModuleDict()
        self.active: tuple[str, ...] = ()  # added up, in this order

    @abstractmethod
    def weight_matrix(self) -> Tensor:  # (m, n), or (stack, m, n)
        """The frozen weight as (out, in)."""

    @abstractmethod
    def as_stored(self, W: Tensor) -> Tensor:
        """A matrix, (m, n) or (stack, m, n), in the layout of the parameter."""

    def as_matrix(self, stored: Tensor) -> Tensor:
        """Undo `as_stored`: a view of the parameter, or what has its layout, as (out, in)."""
        if self.transposed:
            return stored.mT
        return (
            stored.reshape(*((self.stack,) if self.stack > 1 else ()), *self.shape) if self.kind == "conv" else stored
        )

    def changed_weight(self, W: Tensor | None = None) -> Tensor:  # (m, n), or (stack, m, n)
        """c ∘ (W + Δ) of the active adapters, differentiable, in W's dtype: 2mnr operations and a new m×n tensor.

        Args:
            W: As (out, in); None is the frozen weight.
        """
        frozen = W = self.weight_matrix() if W is None else W
        factor = None
        for adapter in self.live():
            terms = adapter.terms()
            if terms is None:
                W = W + adapter.delta().to(W.dtype)
            else:  # all as one product: a start and what takes it out cancel before anything is rounded to W's dtype
                B, A = torch.cat([B for B, _, _ in terms], -1), torch.cat([A for _, A, _ in terms], -2)
                add = torch.baddbmm if W.ndim == 3 else torch.addmm
                W = add(W, B.to(W.dtype), A.to(W.dtype), alpha=adapter.scale)
            if adapter.magnitude is not None:
                factor = row_factor(adapter, frozen).to(W.dtype)
        return W if factor is None else factor.unsqueeze(-1) * W

    @property
    def held(self) -> dict[str, Adapter]:
        """The adapters by name: the dict inside `adapters`, which is found faster."""
        return self._modules["adapters"]._modules  # type: ignore[return-value,union-attr]

    def live(self) -> list[Adapter]:
        """The active adapters."""
        held = self.held
        return [held[name] for name in self.active]

    def add(self, name: str, adapter: Adapter) -> None:
        """Give the matrix one more adapter, which does not act or train yet."""
        if name in self.adapters:
            raise ValueError(f"name: {self.name} has an adapter {name!r} already; choose another name, or remove it")
        self.adapters[name] = adapter.requires_grad_(False)

    @abstractmethod
    def write(self, W: Tensor) -> None:
        """Give the frozen matrix other values, (m, n) or (stack, m, n), in a new tensor of W's dtype."""

    @abstractmethod
    def leave(self, model: nn.Module) -> None:
        """Put back what stood in this place; call it when no adapter is left."""

    def extra_repr(self) -> str:
        return f"{self.name}, active={', '.join(self.active) or 'none'}"


def places(model: nn.Module, adapter: str | None = None) -> dict[str, Place]:
    """The adapted matrices of a model.

    Args:
        model: The model.
        adapter: Only those that have an adapter of this name; None for all.

    Returns:
        Matrix name → Place, in the model's order, each once.
    """
    found = {module.name: module for module in outer_modules(model) if isinstance(module, Place)}
    return {name: place for name, place in found.items() if adapter is None or adapter in place.adapters}


def outer_modules(model: nn.Module) -> Iterator[nn.Module]:
    """Every module once, in the model's order, but none inside a place: several times faster than `model.modules()`."""
    waiting, seen = [model], set()
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        yield module
        if not isinstance(module, Place):
            waiting.extend(child for child in reversed(module._modules.values()) if child is not None)


def adapters(model: nn.Module, name: str) -> Iterator[tuple[str, Adapter]]:
    """The adapters of one name, with the names of their matrices."""
    for place_name, place in places(model, name).items():
        yield place_name, place.adapters[name]  # type: ignore[misc]
