"""The linear layers that read one tensor, with their adapters, as one step of autograd.

    y_i = c_i ∘ (x W_iᵀ + Σ_t s_t z_t B_tᵀ) + b_i,     z = drop(x) [A_1; A_2; …]ᵀ        for all siblings i and terms t

Kept for the backward pass: one x for all siblings, the small z, and the outputs only where a magnitude trains. One
product makes all z, one all gradients of A, and dx is accumulated by `addmm` (no sums of separate gradients):

    G_t = s_t (c_i∘dY_i) B_t,  dB_t = s_t (c_i∘dY_i)ᵀ z_t,  [dA] = Gᵀ drop(x),  dx = drop(G [A]) + Σ_i (c_i∘dY_i) W_i
    dc_i = Σ_rows dY_i ∘ (y_i − b_i) / c_i

Cost beyond the frozen layers: 6 T r (m+n) operations for T rows. Skinny products are laid out with rank as rows, since
(r, T)-shaped results are several times faster than (T, r) ones where r is small (measured on two cores).
Paper: none; autograd's own way also keeps the scaled sums and reads dY twice more.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from eckart.adapters.dropout import drop


class Sibling(NamedTuple):
    """How one layer's tensors follow each other in the flat list that autograd takes: W, bias?, factor?, B…, A…"""

    bias: bool
    factor: bool
    scales: tuple[float, ...]


class Parts(NamedTuple):
    """One layer's tensors."""

    W: Tensor  # (m, n)
    bias: Tensor | None  # (m,)
    factor: Tensor | None  # (m,)
    B: list[Tensor]  # (m, r_t) each
    A: list[Tensor]  # (r_t, n) each
    scales: tuple[float, ...]


def fused(x: Tensor, parts: list[Parts], rate: float = 0.0, seed: Tensor | None = None) -> tuple[Tensor, ...]:
    """The outputs of all layers that read x.

    Args:
        x: (..., n).
        parts: One for each layer.
        rate: Share of x's entries that are dropped before A.
        seed: From `dropout.draw_seed`, needed where rate > 0.

    Returns:
        One (..., m_i) for each.
    """
    plan = tuple(Sibling(p.bias is not None, p.factor is not None, p.scales) for p in parts)
    flat = [t for p in parts for t in (p.W, p.bias, p.factor, *p.B, *p.A) if t is not None]
    return _Fused.apply(x, plan, rate, seed, *flat)


def _unflatten(plan: tuple[Sibling, ...], flat: tuple[Any, ...]) -> list[Parts]:
    rest = list(flat)
    parts = []
    for sibling in plan:
        k = len(sibling.scales)
        W = rest.pop(0)
        bias = rest.pop(0) if sibling.bias else None
        factor = rest.pop(0) if sibling.factor else None
        B, A, rest = rest[:k], rest[k : 2 * k], rest[2 * k :]
        parts.append(Parts(W, bias, factor, B, A, sibling.scales))
    return parts


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, plan: tuple[Sibling, ...], rate: float, seed: Tensor | None, *flat: Tensor
    ) -> tuple[Tensor, ...]:
        parts = _unflatten(plan, flat)
        dtype = _compute_dtype(x, parts[0].W)
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        dropped = drop(rows, rate, seed) if seed is not None else rows
        A = _stacked([A for p in parts for A in p.A], dtype)
        z = dropped @ A.mT  # (T, R)
        outputs, start = [], 0
        for part in parts:
            y = rows @ part.W.to(dtype).mT
            for B, scale in zip(part.B, part.scales, strict=True):
                y.addmm_(z[:, start : start + B.shape[1]], B.to(dtype).mT, alpha=scale)
                start += B.shape[1]
            if part.factor is not None:
                y.mul_(part.factor)
            if part.bias is not None:
                y.add_(part.bias)
            outputs.append(y.view(*x.shape[:-1], -1))
        ctx.plan, ctx.rate, ctx.shape, ctx.dtype = plan, rate, x.shape, x.dtype
        _save(ctx, parts, rows, z, seed, flat, outputs)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dY: Tensor) -> tuple[Tensor | None, ...]:
        rows, z, seed, *saved = ctx.saved_tensors
        flat, outputs = saved[: ctx.count], saved[ctx.count :]
        parts = _unflatten(ctx.plan, tuple(flat))
        needs = _unflatten(ctx.plan, ctx.needs_input_grad[4:])
        dtype = z.dtype
        A = _stacked([A for p in parts for A in p.A], dtype)
        Gt = torch.empty(A.shape[0], z.shape[0], dtype=dtype, device=z.device)  # (R, T)
        zt = z.mT
        start, slopes, grads = 0, [], []
        for index, (part, need, dy) in enumerate(zip(parts, needs, dY, strict=True)):
            dy = dy.reshape(-1, dy.shape[-1])
            dbias = dy.sum(0) if need.bias else None
            dfactor = None
            if part.factor is not None:
                if need.factor:
                    dfactor = _factor_slope(dy, outputs[index], part)
                dy = dy * part.factor
            dy = dy.to(dtype)
            dB: list[Tensor | None] = []
            for B, wanted, scale in zip(part.B, need.B, part.scales, strict=True):
                here = slice(start, start + B.shape[1])
                torch.mm(B.to(dtype).mT, dy.mT, out=Gt[here])
                Gt[here].mul_(scale)
                dB.append((zt[here] @ dy).mul_(scale).mT.to(B.dtype) if wanted else None)
                start += B.shape[1]
            slopes.append(dy)
            grads.append((dbias, dfactor, dB))
        dA = _dA(parts, needs, Gt, rows, ctx.rate, seed)
        dx = _dx(ctx, parts, Gt, A, slopes, seed) if ctx.needs_input_grad[0] else None
        return (dx, None, None, None, *_flatten(parts, grads, dA))


def _save(
    ctx: Any,
    parts: list[Parts],
    rows: Tensor,
    z: Tensor,
    seed: Tensor | None,
    flat: tuple[Tensor, ...],
    outputs: list[Tensor],
) -> None:
    """Keep x only where an A trains, and an output only where its magnitude does."""
    needs = _unflatten(ctx.plan, ctx.needs_input_grad[4:])
    keep_x = any(any(need.A) for need in needs)
    kept = [y if need.factor else None for y, need in zip(outputs, needs, strict=True)]
    ctx.count = len(flat)
    ctx.save_for_backward(rows if keep_x else None, z, seed, *flat, *kept)


def _compute_dtype(x: Tensor, W: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else W.dtype


def _stacked(A: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat([each.to(dtype) for each in A]) if len(A) > 1 else A[0].to(dtype)


def _factor_slope(dy: Tensor, y: Tensor, part: Parts) -> Tensor:
    """dc = Σ dY ∘ u with u = (y − b)/c, from the output that the next layer keeps anyway; 0 where c is."""
    assert part.factor is not None
    total = (dy * y.view(dy.shape)).sum(0)
    if part.bias is not None:
        total -= part.bias * dy.sum(0)
    return torch.where(part.factor != 0, total / part.factor, 0).to(part.factor.dtype)


def _dA(
    parts: list[Parts], needs: list[Parts], Gt: Tensor, rows: Tensor | None, rate: float, seed: Tensor | None
) -> list[Tensor | None]:
    """The gradients of all A's, from one product."""
    ranks = [len(A) for p in parts for A in p.A]
    if rows is None:
        return [None] * len(ranks)
    dropped = drop(rows, rate, seed) if seed is not None else rows
    split = (Gt @ dropped).split(ranks)
    wanted = [need for p in needs for need in p.A]
    dtypes = [A.dtype for p in parts for A in p.A]
    return [g.to(dtype) if want else None for g, want, dtype in zip(split, wanted, dtypes, strict=True)]


def _dx(ctx: Any, parts: list[Parts], Gt: Tensor, A: Tensor, slopes: list[Tensor], seed: Tensor | None) -> Tensor:
    dx = Gt.mT @ A
    if seed is not None:
        dx = drop(dx, ctx.rate, seed)
    for part, dy in zip(parts, slopes, strict=True):
        dx.addmm_(dy, part.W.to(dx.dtype))
    return dx.view(ctx.shape).to(ctx.dtype)


def _flatten(parts: list[Parts], grads: list[Any], dA: list[Tensor | None]) -> list[Tensor | None]:
    """The gradients in the order of the flat list."""
    flat: list[Tensor | None] = []
    for part, (dbias, dfactor, dB) in zip(parts, grads, strict=True):
        flat.append(None)  # the weight is frozen
        flat += [dbias] if part.bias is not None else []
        flat += [dfactor] if part.factor is not None else []
        flat += [*dB, *dA[: len(dB)]]
        dA = dA[len(dB) :]
    return flat
