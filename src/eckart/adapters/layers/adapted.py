"""A layer with adapters: the frozen layer inside, and what its active adapters add.

Linear layers go through `fused`, together with their siblings; other layers, compiled models and bases that are not
plain floating-point weights (quantised, sharded, hooked) go through ordinary operations, one layer at a time.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from eckart.adapters.adapter import Adapter
from eckart.adapters.layers.conditions import PLAIN, is_eager, is_watched, why_alone
from eckart.adapters.layers.dropout import draw_seed
from eckart.adapters.layers.fused import Parts, fused
from eckart.adapters.layers.magnitude import row_factor
from eckart.adapters.layers.place import Place
from eckart.adapters.layers.siblings import Siblings
from eckart.nn import Matrix, is_compressed, replace
from eckart.nn.compressed_linear import to_linear
from eckart.nn.foreign_quantized import dequantized, is_quantized
from eckart.nn.products import along_outputs, pair_product, product, scale_rows


class AdaptedLayer(Place):
    """A module in the place of a layer, which it keeps as `base`.

    Attributes that it has not are the base's (`in_features`, …), but `weight` and `bias` are those with the active
    adapters in them: code that multiplies with the weight itself (attention with its output layer's) is right too, at
    the cost of forming W + Δ. A quantised weight is given as it is.

    Args:
        matrix: The layer's matrix.
        siblings: One object for all adapted layers of a model.
        read: Whether the module that holds the layer is known to read its weight instead of calling it.
    """

    base: Any
    acts_through = "base"  # for `nn.matrices`, which names the layer as before

    def __init__(self, matrix: Matrix, siblings: Siblings, read: bool = False) -> None:
        super().__init__(matrix)
        self.base = matrix.module
        self.read = read
        self.siblings = siblings
        self._known: tuple[Any, Any, bool] = None, None, False  # whether this weight and these adapters can be fused
        self.by_row: Callable[..., Tensor] | None = None  # set by `mixed`: each row of a batch has its own adapter

    def __getattr__(self, name: str) -> Any:
        if name == "base":  # asked for several times in each call
            return self._modules["base"]
        try:
            return super().__getattr__(name)
        except AttributeError:
            base: Any = self.__dict__.get("_modules", {}).get("base")
            if base is None:  # half made, as while it is copied
                raise
        if name == "weight" and self.active and not is_quantized(base):
            return self.as_stored(self.changed_weight())
        if name == "bias" and self.active and self.kind != "embedding":
            return self._bias(self.live())
        return getattr(base, name)

    @property
    def changes_weight(self) -> bool:
        """Whether `weight` is another than the base's."""
        return bool(self.active)

    def weight_matrix(self) -> Tensor:  # (m, n), or (stack, m, n)
        return dequantized(self.base) if is_quantized(self.base) else self.as_matrix(self.base.weight.detach())

    def as_stored(self, W: Tensor) -> Tensor:
        W = W.mT if self.transposed else W
        return W.reshape(self.base.weight.shape) if self.kind == "conv" else W

    def write(self, W: Tensor) -> None:
        """Give the layer another weight, (m, n) or (stack, m, n), in a new tensor of W's dtype.

        A quantised or compressed layer becomes a dense one.
        """
        if is_quantized(self.base):
            self.base = to_linear(W, self.base.bias)
            return
        old = self.base.weight
        if is_compressed(self.base):
            self.base = self.base.to_dense().requires_grad_(old.requires_grad)
        self.base.weight = nn.Parameter(self.as_stored(W).contiguous(), requires_grad=old.requires_grad)

    def leave(self, model: nn.Module) -> None:
        """Put the layer itself back."""
        self.siblings.forget()
        for name in (self.name, *self.aliases):
            replace(model, name, self.base)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer with its active adapters."""
        if self.by_row is not None:
            return self.by_row(self, x, *args, **kwargs)
        if not self.active:
            return self.base(x, *args, **kwargs)
        live = self.live()
        if self._fusable(live, x):
            return self.siblings.run(self, x, _state, _apart, self._compute)
        return self._plain(live, x, *args, **kwargs)

    def _rate(self, live: list[Adapter]) -> float:
        return live[0].settings.dropout if self.training else 0.0

    def _bias(self, live: list[Adapter]) -> Tensor | None:
        """The frozen bias with all trained changes of it."""
        total = self.base.bias if self.kind != "embedding" else None
        for adapter in live:
            if adapter.bias is not None:
                total = adapter.bias if total is None else total + adapter.bias
        return total

    def _factor(self, live: list[Adapter]) -> Tensor | None:
        """The row factor of the one adapter that may have a magnitude."""
        for adapter in live:
            if adapter.magnitude is not None:
                source = None if is_quantized(self.base) else self.base._parameters.get("weight")
                return row_factor(adapter, self.weight_matrix(), source)
        return None

    def _fusable(self, live: list[Adapter], x: Tensor) -> bool:
        """Whether `fused` computes this call: eager, plain tensors, thin products, one rate of dropout."""
        return self.kind in ("linear", "conv1d") and is_eager(x) and self._fits(live)

    def _fits(self, live: list[Adapter]) -> bool:
        base = self.base
        W = base._parameters.get("weight")
        if W is not self._known[0] or self.active is not self._known[1]:
            self._known = W, self.active, self._plain_and_thin(live)
        # `fused` knows no slope of W, and does not call the layer
        return self._known[2] and not W.requires_grad and not is_watched(base)

    def _plain_and_thin(self, live: list[Adapter]) -> bool:
        parameters = [p for adapter in live for p in adapter._parameters.values() if p is not None]
        return (
            not why_alone(self.base)
            and all(adapter.thin for adapter in live)
            and all(type(p) in PLAIN and not p.is_inference() for p in parameters)
            and len({adapter.settings.dropout for adapter in live}) == 1
        )

    def _compute(self, x: Tensor, members: list[nn.Module]) -> tuple[Tensor, ...]:
        parts = [layer._parts() for layer in members]  # type: ignore[operator]
        rate = self._rate(self.live()) if self.training else 0.0
        return fused(x, parts, rate, draw_seed(x.device) if rate else None)

    def _parts(self) -> Parts:
        live = self.live()
        terms = [term for adapter in live for term in adapter.terms() or ()]
        W = self.base._parameters["weight"]
        return Parts(
            W.mT if self.transposed else W,
            self._bias(live),
            self._factor(live),
            [term.B for term in terms],
            [term.A for term in terms],
            tuple(term.scale for term in terms),
        )

    def _plain(self, live: list[Adapter], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The same in ordinary operations: right for every layer, shape and kind of tensor."""
        factor = self._factor(live)
        if isinstance(self.base, nn.EmbeddingBag) and (factor is not None or self.base.mode == "max"):
            return functional_call(self.base, {"weight": self.changed_weight()}, (x, *args), kwargs)
        y = self.base(x, *args, **kwargs)
        change = [self._change(adapter, x, *args, **kwargs) for adapter in live]
        if factor is None:
            for each in change:
                y = y + each.to(y.dtype)
        else:
            bias = self.base.bias if self.kind != "embedding" else None
            bare = y if bias is None else y - along_outputs(self.base, self.kind, bias)
            scaled = scale_rows(self.base, self.kind, x, bare + sum(change).to(y.dtype), factor.to(y.dtype))  # type: ignore[union-attr]
            y = scaled if bias is None else scaled + along_outputs(self.base, self.kind, bias)
        for adapter in live:
            if adapter.bias is not None:
                y = y + along_outputs(self.base, self.kind, adapter.bias.to(y.dtype))
        return y

    def _change(self, adapter: Adapter, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Δ applied to x."""
        x_in = x
        if x.is_floating_point():
            x_in = F.dropout(x, adapter.settings.dropout, self.training)
        terms = adapter.terms()
        if terms is None:
            if self.kind in ("linear", "conv1d") and (y := adapter.times(x_in)) is not None:
                return y
            return product(self.base, self.kind, x_in, _as(adapter.delta(), x), *args, **kwargs)
        total = None
        for B, A, scale in terms:
            part = scale * pair_product(self.base, self.kind, x_in, _as(B, x), _as(A, x), *args, **kwargs)
            total = part if total is None else total + part
        assert total is not None
        return total

    def extra_repr(self) -> str:
        told = super().extra_repr()
        others = [str(layer.name) for layer in self.siblings.of(self) if layer is not self]
        why = self.siblings.note(self)
        if others and not why:
            return f"{told}, grouped with {', '.join(others)}"
        if not why and self.kind in ("linear", "conv1d"):
            why = why_alone(self.base)
        return told + (f", computed apart: {why}" if why else "")


def _state(layer: nn.Module) -> tuple[object, ...]:
    """What a layer's output depends on beside its input."""
    adapted: AdaptedLayer = layer  # type: ignore[assignment]
    version, held = 0, adapted.held
    for name in adapted.active:
        for p in held[name]._parameters.values():
            if p is not None:
                version += p._version
                device = p.device.type
    cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return version, torch.is_grad_enabled(), cast, adapted.training


def _apart(members: list[nn.Module]) -> str:
    """Why layers cannot be one step now: each must fit and have something to add, all alike in dropout and dtype."""
    layers: list[AdaptedLayer] = members  # type: ignore[assignment]
    alike = set()
    for layer in layers:
        live = layer.live()
        if not live or layer.by_row is not None:
            return f"nothing acts on {layer.name}, or other adapters in each row"
        if not layer._fits(live):
            return (
                f"{layer.name} cannot join ({why_alone(layer.base) or 'hooks, a dense change or a weight that trains'})"
            )
        W = layer.base._parameters["weight"]
        alike.add((layer._rate(live), W.dtype, W.device))
    return "" if len(alike) == 1 else "its siblings differ in dropout, dtype or device"


def _as(W: Tensor, x: Tensor) -> Tensor:
    """A factor in the input's dtype (a table's, where the input is ids)."""
    return W.to(x.dtype) if x.is_floating_point() else W
