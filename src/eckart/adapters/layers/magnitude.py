"""The row factor of a trained magnitude (DoRA), c = μ / ‖W + Δ‖_row, without an m×n temporary.

    ‖W + Δ‖²_row = ‖W‖²_row + 2 rowsum((W Aᵀ) ∘ B) + rowsum((B (A Aᵀ)) ∘ B),     Δ = B·A with its terms stacked

Cost: 2mnr for each optimizer step, and mn once for ‖W‖²; a weight of half precision is widened a block of rows at a
time. The norm is detached, as in the paper's code: gradients flow to μ alone.
Paper: DoRA 2402.09353; theirs forms W + BA in each forward pass.
"""

import weakref
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from eckart.adapters.adapter import Adapter

_BLOCK = 2**20  # entries of W that are widened at a time
_Stamp = tuple[weakref.ref[Tensor], int, int]  # a tensor, its version and where its values are

# What was last computed for an adapter: of W alone, and of W + Δ. Outside the modules, which can so be copied, saved.
_KEPT: weakref.WeakKeyDictionary[Adapter, dict[str, tuple[list[_Stamp], list[float], Tensor]]] = (
    weakref.WeakKeyDictionary()
)

_STEPS = [0.0]  # of any optimizer


def _count_step(*_: object) -> None:
    _STEPS[0] += 1


@cache
def _watch_steps() -> None:
    """Count the steps of optimizers from the first norm that is kept on."""
    register_optimizer_step_post_hook(_count_step)


def row_factor(adapter: Adapter, W: Tensor, source: Tensor | None = None) -> Tensor:  # (m, n) -> (m,)
    """c of an adapter with a magnitude, differentiable in the magnitude.

    Args:
        adapter: The adapter.
        W: The frozen weight as (m, n), or (stack, m, n).
        source: The parameter that W is a view of. Norms are then kept until it or the adapter's factors change, which
            their version counters tell, and the steps of torch's optimizers (fused ones do not count versions up, nor
            do changes made through `.data`). None keeps nothing.
    """
    assert adapter.magnitude is not None
    return adapter.magnitude / _divisor(adapter, W, source)


@torch.no_grad()
def _divisor(adapter: Adapter, W: Tensor, source: Tensor | None) -> Tensor:  # (m,)
    """The norm in the magnitude's dtype, 1 where it is 0; kept where it can be told when it changes."""
    assert adapter.magnitude is not None
    terms = adapter.terms()
    seen = [source, *(factor for B, A, _ in terms for factor in (B, A))] if source is not None and terms else []
    keep = bool(seen) and _countable(seen)
    if keep:
        _watch_steps()
    scales = [*(scale for _, _, scale in terms or ()), _STEPS[0]]
    steps = [_STEPS[0]] if source is not None and source.requires_grad else []
    if keep and (divisor := _recall(adapter, "changed", seen, scales)) is not None:
        return divisor
    own = _recall(adapter, "frozen", seen[:1], steps) if keep else None
    own = _own(W) if own is None and terms is not None else own
    norm = row_norm(adapter, W, own)
    divisor = torch.where(norm > 0, norm, 1.0).to(adapter.magnitude.dtype)
    if keep and own is not None:
        _KEPT[adapter] = {"frozen": (_stamps(seen[:1]), steps, own), "changed": (_stamps(seen), scales, divisor)}
    return divisor


@torch.no_grad()
def row_norm(adapter: Adapter, W: Tensor, own: Tensor | None = None) -> Tensor:  # (m,)
    """‖W + Δ‖ of each row, in float32 or wider, detached; `own` is ‖W‖² where it is known."""
    wide = torch.promote_types(W.dtype, torch.float32)
    with torch.autocast(W.device.type, enabled=False):  # which would make these products in half precision
        terms = adapter.terms()
        if terms is None:
            return torch.linalg.vector_norm(W.to(wide) + adapter.delta().to(wide), dim=-1)
        own = _own(W) if own is None else own
        B = _joined([scale * B.to(wide) for B, _, scale in terms], -1)
        A = _joined([A.to(wide) for _, A, _ in terms], -2)
        cross = _joined([A @ block.to(wide).mT for block in _blocks(W)], -1)  # (r, m)
        mixed = cross.mT.mul(2).add(B @ (A @ A.mT)).mul(B).sum(-1)
        return (own + mixed).clamp_min(0).sqrt()


def _own(W: Tensor) -> Tensor:  # (m,)
    """‖W‖² of each row."""
    wide = torch.promote_types(W.dtype, torch.float32)
    return _joined([torch.linalg.vector_norm(block.to(wide), dim=-1).square() for block in _blocks(W)], -1)


def _blocks(W: Tensor) -> Sequence[Tensor]:
    """W in blocks of rows that are widened one at a time; whole where nothing is to be widened."""
    return (W,) if W.element_size() >= 4 else W.split(max(1, _BLOCK // W.shape[-1]), dim=-2)


def _countable(tensors: Sequence[Tensor]) -> bool:
    """Whether version counters tell all changes: not of inference tensors, nor where gathering rewrites parameters."""
    return not (
        torch.compiler.is_compiling()
        or torch.is_inference_mode_enabled()
        or torch._C._are_functorch_transforms_active()
        or (torch.distributed.is_available() and torch.distributed.is_initialized())
        or any(type(t) not in (Tensor, torch.nn.Parameter) or t.is_meta or t.is_inference() for t in tensors)
    )


def _stamps(tensors: Sequence[Tensor]) -> list[_Stamp]:
    return [(weakref.ref(t), t._version, t.data_ptr()) for t in tensors]


def _recall(adapter: Adapter, what: str, tensors: Sequence[Tensor], scales: list[float]) -> Tensor | None:
    """What is kept, if these are the tensors and scales that it was computed from, as they were."""
    if adapter not in _KEPT:
        return None
    stamps, then, value = _KEPT[adapter][what]
    same = (
        scales == then
        and len(stamps) == len(tensors)
        and all(
            ref() is t and version == t._version and address == t.data_ptr()
            for (ref, version, address), t in zip(stamps, tensors, strict=True)
        )
    )
    return value if same else None


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
