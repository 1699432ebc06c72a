"""The row factor of a trained magnitude (DoRA), c = μ / ‖W + Δ‖_row, without an m×n temporary.

    ‖W + Δ‖²_row = ‖W‖²_row + 2 rowsum((W Aᵀ) ∘ B) + rowsum((B (A Aᵀ)) ∘ B),     Δ = B·A with its terms stacked

Cost: 2mnr for each optimizer step, and mn once for ‖W‖²; a weight of half precision is widened a block of rows at a
time. The norm is detached, as in the paper's code: gradients flow to μ alone.
Paper: DoRA 2402.09353; theirs forms W + BA in each forward pass.
"""

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from eckart.adapters.adapter import Adapter

_BLOCK = 2**20  # entries of W that are widened at a time
_Stamp = tuple[weakref.ref[Tensor], int, int]  # a tensor, its version and where its values are

# What was last computed for an adapter: of W alone, and of W + Δ. Outside the modules, which can so be copied, saved.
_KEPT: weakref.WeakKeyDictionary[Adapter, dict[str, tuple[list[_Stamp], list[float], Tensor]]] = (
    weakref.WeakKeyDictionary()
)


def row_factor(adapter: Adapter, W: Tensor, source: Tensor | None = None) -> Tensor:  # (m, n) -> (m,)
    """c of an adapter with a magnitude, differentiable in the magnitude.

    Args:
        adapter: The adapter.
        W: The frozen weight as (m, n), or (stack, m, n).
        source: The parameter that W is a view of. Norms are then kept until it or the adapter's factors change, which
            their version counters tell (changes made through `.data` do not count up). None keeps nothing.
    """
    assert adapter.magnitude is not None
    norm = row_norm(adapter, W, source)
    return adapter.magnitude / torch.where(norm > 0, norm, 1.0).to(adapter.magnitude.dtype)


@torch.no_grad()
def row_norm(adapter: Adapter, W: Tensor, source: Tensor | None = None) -> Tensor:  # (m,)
    """‖W + Δ‖ of each row, in float32 or wider, detached."""
    wide = torch.promote_types(W.dtype, torch.float32)
    terms = adapter.terms()
    if terms is None:
        return torch.linalg.vector_norm(W.to(wide) + adapter.delta().to(wide), dim=-1)
    factors = [factor for B, A, _ in terms for factor in (B, A)]
    scales = [scale for _, _, scale in terms]
    keep = source is not None and _countable([source, *factors])
    seen = [source, *factors] if keep and source is not None else []
    if keep and (norm := _recall(adapter, "changed", seen, scales)) is not None:
        return norm
    own = _recall(adapter, "frozen", seen[:1], []) if keep else None
    B = _joined([scale * B.to(wide) for B, _, scale in terms], -1)
    A = _joined([A.to(wide) for _, A, _ in terms], -2)
    squares, cross = [], []
    rows = max(1, W.shape[-2] if W.dtype == wide else _BLOCK // W.shape[-1])
    for block in W.split(rows, dim=-2):
        block = block.to(wide)
        if own is None:
            squares.append(torch.linalg.vector_norm(block, dim=-1).square())
        cross.append(A @ block.mT)  # (r, rows)
    own = _joined(squares, -1) if own is None else own
    mixed = _joined(cross, -1).mT.mul(2).add(B @ (A @ A.mT)).mul(B).sum(-1)
    norm = (own + mixed).clamp_min(0).sqrt()
    if keep:
        _KEPT[adapter] = {"frozen": (_stamps(seen[:1]), [], own), "changed": (_stamps(seen), scales, norm)}
    return norm


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
