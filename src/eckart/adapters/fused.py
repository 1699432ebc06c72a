"""The linear layers that read one tensor, with their adapters, as one step of autograd.

    y_i = c_i ∘ u_i + b_i,   u_i = x W_iᵀ + Σ_t s_t z_tᵀ B_tᵀ,   z = [A_1; A_2; …] drop(x)ᵀ     for all siblings i, terms t

Kept for the backward pass: one x for all siblings, the small z (R, T), and u only where a magnitude trains. One product
makes all z, one all gradients of A, and dx is accumulated by `addmm` (no sums of separate gradients):

    G_t = s_t B_tᵀ (c_i∘dY_i)ᵀ,  dB_tᵀ = s_t z_t (c_i∘dY_i),  [dA] = G drop(x),  dx = Σ_i (c_i∘dY_i) W_i + drop(Gᵀ [A])
    dc_i = Σ_rows dY_i ∘ u_i

Cost beyond the frozen layers: 6 T r (m+n) operations for T rows. u is a tensor of its own, not the output: the next
layer may overwrite that, and c may be 0.
Paper: none; autograd's own way also keeps the scaled sums and reads dY twice more.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from eckart.adapters.dropout import fallen

# Skinny products run several times faster with the small side as rows where it is below this (measured: a fifth of the
# time at rank 8, a tenth more at 64; two AVX-512 cores, MKL).
_FEW = 32


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
        needs = _unflatten(plan, ctx.needs_input_grad[4:])
        dtype = _compute_dtype(x, parts[0].W)
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        A = _stacked(parts, dtype)
        few = _few(parts)
        z = _small(A, _dropped(rows, rate, seed).mT, few)  # (R, T)
        outputs, kept, start = [], [], 0
        for part, need in zip(parts, needs, strict=True):
            u = _frozen(rows, part)
            for B, scale in zip(part.B, part.scales, strict=True):
                stop = start + B.shape[1]
                u.addmm_(z[start:stop].mT, B.to(dtype).mT, alpha=scale / (1 - rate))
                start = stop
            keep = part.factor is not None and bool(need.factor)
            kept.append(u if keep else None)
            outputs.append(_reweighted(u, part, keep).view(*x.shape[:-1], -1))
        keep_x = any(any(need.A) for need in needs)
        ctx.plan, ctx.rate, ctx.shape, ctx.dtype, ctx.few = plan, rate, x.shape, x.dtype, few
        ctx.save_for_backward(rows if keep_x else None, z, seed, *kept, *flat)
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dY: Tensor | None) -> tuple[Tensor | None, ...]:
        rows, z, seed, *saved = ctx.saved_tensors
        kept, flat = saved[: len(ctx.plan)], saved[len(ctx.plan) :]
        parts = _unflatten(ctx.plan, tuple(flat))
        needs = _unflatten(ctx.plan, ctx.needs_input_grad[4:])
        G = _empty(z, z.shape[0], z.shape[1], ctx.few)  # (R, T)
        start, slopes, grads = 0, [], []
        for part, need, u, dy in zip(parts, needs, kept, dY, strict=True):
            width = sum(B.shape[1] for B in part.B)
            here = slice(start, start + width)
            slope, *made = _one(part, need, u, dy, z[here], G[here], ctx)
            slopes.append(slope)
            grads.append(made)
            start += width
        lost = fallen((z.shape[1], parts[0].A[0].shape[1]), ctx.rate, seed) if seed is not None else None
        dA = _dA(parts, needs, G, rows, lost)
        dx = _dx(ctx, parts, G, slopes, lost) if ctx.needs_input_grad[0] else None
        return (dx, None, None, None, *_flatten(parts, grads, dA))


def _compute_dtype(x: Tensor, W: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else W.dtype


def _stacked(parts: list[Parts], dtype: torch.dtype) -> Tensor:  # (R, n)
    A = [A for part in parts for A in part.A]
    return torch.cat([each.to(dtype) for each in A]) if len(A) > 1 else A[0].to(dtype)


def _few(parts: list[Parts]) -> bool:
    return all(len(A) < _FEW for part in parts for A in part.A)


def _empty(like: Tensor, few: int, many: int, rows: bool) -> Tensor:  # (few, many)
    """Not yet written, with the small side as rows in memory, or as columns."""
    return like.new_empty(few, many) if rows else like.new_empty(many, few).mT


def _small(P: Tensor, Q: Tensor, rows: bool, scale: float = 1.0) -> Tensor:  # (few, k), (k, many) -> (few, many)
    """scale · P Q, scaled by the product itself instead of in a pass of its own."""
    return _empty(P, P.shape[0], Q.shape[1], rows).addmm_(P, Q, beta=0, alpha=scale)


def _dropped(rows: Tensor, rate: float, seed: Tensor | None) -> Tensor:
    """What the adapters see; the factor 1/(1 − rate) goes into their scales."""
    return rows if seed is None else rows.masked_fill(fallen(tuple(rows.shape), rate, seed), 0.0)


def _frozen(rows: Tensor, part: Parts) -> Tensor:
    """x Wᵀ, with the bias where no factor comes in between."""
    W = part.W.to(rows.dtype).mT
    return torch.addmm(part.bias.to(rows.dtype), rows, W) if part.bias is not None and part.factor is None else rows @ W


def _reweighted(u: Tensor, part: Parts, keep: bool) -> Tensor:
    """c ∘ u + b, in u's own memory unless u is kept; c has its own precision within the one pass."""
    if part.factor is None:
        return u
    y = torch.mul(u, part.factor, out=torch.empty_like(u) if keep else u)
    return y if part.bias is None else y.add_(part.bias)


def _one(
    part: Parts, need: Parts, u: Tensor | None, dy: Tensor | None, z: Tensor, G: Tensor, ctx: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None, list[Tensor | None]]:
    """One layer's c∘dY, dbias, dfactor and dB's; its rows of G are written."""
    if dy is None:
        G.zero_()
        return None, None, None, [None] * len(part.B)
    dy = dy.reshape(-1, dy.shape[-1]).to(z.dtype)
    dbias = dy.sum(0).to(part.bias.dtype) if need.bias and part.bias is not None else None
    dfactor = None
    if part.factor is not None:
        room = torch.empty_like(dy)
        if u is not None:
            dfactor = torch.mul(dy, u, out=room).sum(0, dtype=part.factor.dtype)
        dy = torch.mul(dy, part.factor, out=room)
    dB: list[Tensor | None] = []
    start = 0
    for B, wanted, scale in zip(part.B, need.B, part.scales, strict=True):
        here = slice(start, start + B.shape[1])
        scale /= 1 - ctx.rate
        G[here].addmm_(B.to(dy.dtype).mT, dy.mT, beta=0, alpha=scale)
        dB.append(_small(z[here], dy, ctx.few, scale).mT.to(B.dtype) if wanted else None)
        start += B.shape[1]
    return dy, dbias, dfactor, dB


def _dA(
    parts: list[Parts], needs: list[Parts], G: Tensor, rows: Tensor | None, lost: Tensor | None
) -> list[Tensor | None]:
    """The gradients of all A's, from one product."""
    ranks = [len(A) for p in parts for A in p.A]
    if rows is None:
        return [None] * len(ranks)
    split = (G @ (rows if lost is None else rows.masked_fill(lost, 0.0))).split(ranks)
    wanted = [need for p in needs for need in p.A]
    dtypes = [A.dtype for p in parts for A in p.A]
    return [g.to(dtype) if want else None for g, want, dtype in zip(split, wanted, dtypes, strict=True)]


def _dx(ctx: Any, parts: list[Parts], G: Tensor, slopes: list[Tensor | None], lost: Tensor | None) -> Tensor:
    """Into the first layer's full product, since adding to a matrix costs less than making one."""
    A = _stacked(parts, G.dtype)
    dx = None
    for part, dy in zip(parts, slopes, strict=True):
        if dy is not None:
            W = part.W.to(dy.dtype)
            dx = dy @ W if dx is None else dx.addmm_(dy, W)
    assert dx is not None  # autograd asks for no slope where no output has one
    dx = dx.addmm_(G.mT, A) if lost is None else dx.add_((G.mT @ A).masked_fill_(lost, 0.0))
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
