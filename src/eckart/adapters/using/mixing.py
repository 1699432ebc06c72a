"""One batch with another adapter for each of its rows, as grouped matrix products.

    y_i = c_i ∘ (W x_i + B_i A_i x_i) + b + b′_i        for row i of the batch, with the factors of its own adapter

The factors of the k adapters in the batch are padded with zeros to the largest rank R and stacked, A (k, R, n) and
B (k, m, R), with the scale folded into B; slot 0 is zero and stands for no adapter. Rows gather their slots, and two
batched products give all changes at once. An embedding looks its rows up in the stacked B instead.
Cost beyond the frozen layer: 2 T R (m+n) operations for each row of T tokens, and R(m+n) numbers gathered for it.

Paper: none; S-LoRA 2311.03285 does this with kernels of its own, PEFT with one pass for each adapter and without DoRA.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eckart.adapters.adapter import Adapter
from eckart.adapters.layers.adapted import AdaptedLayer
from eckart.adapters.layers.magnitude import row_factor
from eckart.adapters.layers.place import Place, places
from eckart.adapters.layers.saved_modules import saved_modules
from eckart.adapters.using.switching import disabled, names, require_known

KINDS = ("linear", "conv1d", "embedding")


@contextmanager
def mixed(model: nn.Module, rows: Sequence[str | None]) -> Iterator[nn.Module]:
    """Let each row of a batch have its own adapter, for the length of a `with` block.

    What is active outside does not act inside. What trains is what trained before: `activate` all of them first to
    train several at once. A backward pass that computes activations again (checkpointing) belongs inside the block.

    Args:
        model: A model with adapters on linear layers, transformers' Conv1D and embeddings.
        rows: One name for each row of the batch; None for the model without adapters.

    Raises:
        ValueError: An unknown name, or an adapter that cannot be mixed: on convolutions or experts, no thin product
            (LoKr), or with modules trained whole. In the block: an adapted layer is called with a tensor whose first
            dimension is not the batch's (batch·time in routed experts).

    Example:
        >>> from eckart.adapters import adapt
        >>> model = nn.Sequential(nn.Linear(4, 4))
        >>> _ = adapt(model, rank=1, name="law"), adapt(model, rank=2, name="code")
        >>> with mixed(model, ["law", None, "code"]):
        ...     y = model(torch.ones(3, 7, 4))
        >>> y.shape
        torch.Size([3, 7, 4])
    """
    wanted = tuple(dict.fromkeys(name for name in rows if name is not None))
    if not rows:
        raise ValueError("rows: none given; give one adapter's name, or None, for each row of the batch")
    require_known(wanted, names(model), "rows")
    found = places(model)
    for place in found.values():
        for name in wanted:
            if name in place.held:
                _check(place, name)
    _check_whole(model, wanted)
    layers = [place for place in found.values() if isinstance(place, AdaptedLayer)]
    before = {layer: layer.by_row for layer in layers}
    mix = _Mix(wanted, rows)
    try:
        for layer in layers:
            layer.by_row = mix
        with disabled(model):  # what no layer's forward pass sees, such as experts
            yield model
    finally:
        for layer, by_row in before.items():
            layer.by_row = by_row


class _Stacked(NamedTuple):
    """The factors of all adapters of the batch on one layer, slot 0 for none."""

    B: Tensor  # (k, m, R), scale included
    A: Tensor  # (k, R, n)
    factor: Tensor | None  # (k, m)
    bias: Tensor | None  # (k, m)
    rate: Tensor | None  # (k,) of dropout


class _Mix:
    """What the adapted layers of a model call instead of their own forward pass."""

    def __init__(self, wanted: tuple[str, ...], rows: Sequence[str | None]) -> None:
        self.wanted = wanted
        self.slots = torch.tensor([0 if name is None else 1 + wanted.index(name) for name in rows])
        self._kept: dict[AdaptedLayer, tuple[list[Tensor], list[int], _Stacked]] = {}

    def __call__(self, layer: AdaptedLayer, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = layer.base(x, *args, **kwargs)
        held = [layer.held.get(name) for name in self.wanted]
        if not any(adapter is not None for adapter in held):
            return y
        if x.ndim < 1 + (layer.kind != "embedding") or x.shape[0] != len(self.slots):
            raise ValueError(
                f"rows: {layer.name} is called with a tensor {tuple(x.shape)}, whose first dimension is not the "
                f"{len(self.slots)} rows of the batch (batch·time, as in routed experts?); run the adapters apart"
            )
        if self.slots.device != x.device:
            self.slots = self.slots.to(x.device)
        stacked = self._stacked(layer, held, x)
        return (_looked_up if layer.kind == "embedding" else _linear)(layer, x, y, stacked, self.slots)

    def _stacked(self, layer: AdaptedLayer, held: list[Adapter | None], x: Tensor) -> _Stacked:
        """The factors; where nothing trains they are kept for the next call, until one of them changes."""
        if torch.is_grad_enabled():
            return _stack(layer, held, x)
        if layer in self._kept:
            tensors, versions, stacked = self._kept[layer]
            if versions == [tensor._version for tensor in tensors] and stacked.A.dtype == _dtype(layer, x):
                return stacked
        stacked = _stack(layer, held, x)
        tensors = [p for adapter in held if adapter is not None for p in (*adapter.parameters(), *adapter.buffers())]
        if not any(tensor.is_inference() for tensor in tensors):
            self._kept[layer] = (tensors, [tensor._version for tensor in tensors], stacked)
        return stacked


def _stack(layer: AdaptedLayer, held: list[Adapter | None], x: Tensor) -> _Stacked:
    """Pad the factors to the largest rank and stack them."""
    m, n = layer.shape
    dtype = _dtype(layer, x)
    pairs = [(torch.zeros(m, 0, device=x.device), torch.zeros(0, n, device=x.device))]
    for adapter in held:
        terms = (adapter.terms() or []) if adapter is not None else []
        pairs.append(
            (torch.cat([scale * B for B, _, scale in terms], 1), torch.cat([A for _, A, _ in terms]))
            if terms
            else pairs[0]
        )
    rank = max(A.shape[0] for _, A in pairs)
    B = torch.stack([F.pad(B.to(dtype), (0, rank - B.shape[1])) for B, _ in pairs])
    A = torch.stack([F.pad(A.to(dtype), (0, 0, 0, rank - A.shape[0])) for _, A in pairs])
    factors = [
        row_factor(adapter, layer.weight_matrix()) if adapter is not None and adapter.magnitude is not None else None
        for adapter in (None, *held)
    ]
    biases = [adapter.bias if adapter is not None else None for adapter in (None, *held)]
    rates = [adapter.settings.dropout if adapter is not None else 0.0 for adapter in (None, *held)]
    drops = layer.training and any(rates) and x.is_floating_point()
    return _Stacked(
        B,
        A,
        _filled(factors, torch.ones(m, device=x.device), dtype),
        _filled(biases, torch.zeros(m, device=x.device), dtype),
        torch.tensor(rates, device=x.device) if drops else None,
    )


def _filled(vectors: Sequence[Tensor | None], otherwise: Tensor, dtype: torch.dtype) -> Tensor | None:
    if all(vector is None for vector in vectors):
        return None
    return torch.stack([(otherwise if vector is None else vector).to(dtype) for vector in vectors])


def _dtype(layer: AdaptedLayer, x: Tensor) -> torch.dtype:
    return x.dtype if x.is_floating_point() else layer.base.weight.dtype


def _linear(layer: AdaptedLayer, x: Tensor, y: Tensor, stacked: _Stacked, slots: Tensor) -> Tensor:
    batch, (m, n) = len(slots), layer.shape
    if stacked.rate is not None:
        rate = stacked.rate[slots].view(-1, *(1,) * (x.ndim - 1))
        x = x * (torch.rand_like(x) >= rate) / (1 - rate).to(x.dtype)
    z = torch.bmm(x.reshape(batch, -1, n), stacked.A[slots].mT)  # (batch, T, R)
    B = stacked.B[slots].mT
    bias = layer.base.bias if stacked.factor is not None else None
    bare = (y if bias is None else y - bias).reshape(batch, -1, m)
    out = torch.baddbmm(bare.to(z.dtype), z, B)
    if stacked.factor is not None:
        out = out * stacked.factor[slots].unsqueeze(1)
    for vector in (None if stacked.bias is None else stacked.bias[slots].unsqueeze(1), bias):
        out = out if vector is None else out + vector
    return out.to(y.dtype).view(y.shape)


def _looked_up(layer: AdaptedLayer, ids: Tensor, y: Tensor, stacked: _Stacked, slots: Tensor) -> Tensor:
    batch, (m, n) = len(slots), layer.shape
    where = ids.reshape(batch, -1) + slots.unsqueeze(1) * m  # rows of the stacked B
    z = F.embedding(where, stacked.B.reshape(-1, stacked.B.shape[-1]))  # (batch, T, R)
    if layer.base.padding_idx is not None:  # its row has no gradient
        z = torch.where((ids.reshape(batch, -1) == layer.base.padding_idx).unsqueeze(-1), z.detach(), z)
    out = torch.baddbmm(y.reshape(batch, -1, n), z, stacked.A[slots])
    if stacked.factor is not None:
        out = out * stacked.factor.flatten()[where].unsqueeze(-1)
    return out.view(y.shape)


def _check(place: Place, name: str) -> None:
    """Refuse what is no pair of factors on a layer that this file knows."""
    adapter = place.held[name]
    known = isinstance(place, AdaptedLayer) and place.kind in KINDS and place.stack == 1 and not place.read
    if not known or (place.kind == "embedding" and not isinstance(getattr(place, "base", None), nn.Embedding)):
        raise ValueError(
            f"rows: {name} acts on {place.name}, {'whose weight other code reads' if place.read else place.kind}; only "
            "linear layers and embeddings that are called are mixed in one batch: run the rows of that adapter apart"
        )
    if not adapter.thin or (place.kind == "embedding" and adapter.bias is not None):
        what = "trains the bias of an embedding" if adapter.thin else "is no thin product"
        raise ValueError(f"rows: {name} {what} on {place.name}; run the rows of that adapter apart")


def _check_whole(model: nn.Module, wanted: tuple[str, ...]) -> None:
    for name, module in saved_modules(model).items():
        holders = [adapter for adapter in wanted if adapter in module.copies]
        if holders:
            raise ValueError(
                f"rows: {', '.join(holders)} trained {name} whole, and one batch has one {name}; run its rows apart"
            )
