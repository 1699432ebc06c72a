"""The linear layers that read one tensor, with their adapters, as one step of autograd.

    y_i = c_i ∘ u_i + b_i,   u_i = x W_iᵀ + Σ_t s_t z_tᵀ B_tᵀ,   z = [A_1; A_2; …] drop(x)ᵀ    for siblings i, terms t

Kept for the backward pass: one x for all siblings, the small z (R, T), and y where a magnitude trains. One product
makes all z, one all gradients of A, and dx is accumulated by `addmm` (no sums of separate gradients):

    G_t = s_t B_tᵀ (c_i∘dY_i)ᵀ,  dB_tᵀ = s_t z_t (c_i∘dY_i),  [dA] = G drop(x),  dx = Σ_i (c_i∘dY_i) W_i + drop(Gᵀ [A])
    dc_i = Σ_rows dY_i ∘ u_i,  u_i = (y_i − b_i) / c_i

Cost beyond the frozen layers: 6 T r (m+n) operations for T rows. y is what the next layer mostly keeps anyway; where
that layer wrote into it, u is computed once more, and where no x is kept to do so, u is kept apart. dc is 0 where c is.
Paper: none; autograd's own way also keeps the scaled sums and reads dY twice more.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from eckart.adapters.layers.dropout import fallen
from eckart.adapters.layers.parts import Parts, Plan, distinct

# Skinny products run several times faster with the small side as rows where it is below this (measured: a fifth of the
# time at rank 8, a tenth more at 64; two AVX-512 cores, MKL).
_FEW = 32


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
    biased = [i for i, part in enumerate(parts) if part.bias is not None]
    factored = [i for i, part in enumerate(parts) if part.factor is not None]
    owners = [i for i, part in enumerate(parts) for _ in part.B]
    scales = [scale / (1 - rate) for part in parts for scale in part.scales]
    B = [B for part in parts for B in part.B]
    A, reads = distinct([A for part in parts for A in part.A])
    plan = Plan(len(parts), biased, factored, owners, scales, reads, [len(each) for each in A], rate)
    bias = [parts[i].bias for i in biased]
    return _Fused.apply(x, plan, seed, *[part.W for part in parts], *bias, *[parts[i].factor for i in factored], *B, *A)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: Plan, seed: Tensor | None, *flat: Tensor) -> tuple[Tensor, ...]:
        W, bias, factor, B, A = plan.cut(flat)
        _, _, factor_trains, _, A_trains = plan.cut(ctx.needs_input_grad[3:])
        dtype = _compute_dtype(x, W[0])
        rows = _as(x.reshape(-1, x.shape[-1]), dtype)
        lost = fallen(tuple(rows.shape), plan.rate, seed) if seed is not None else None
        z = _z(_stacked(A, dtype), rows if lost is None else rows.masked_fill(lost, 0.0), plan)  # (R, T)
        u = [
            torch.addmm(_as(bias[i], dtype), rows, _as(each, dtype).mT)
            if i in bias and i not in factor
            else rows @ _as(each, dtype).mT
            for i, each in enumerate(W)
        ]
        for owner, scale, z_t, B_t in zip(plan.owners, plan.scales, plan.of_terms(z), B, strict=True):
            u[owner].addmm_(z_t.mT, _as(B_t, dtype).mT, alpha=scale)
        keep_x = any(A_trains)
        learning = [i for i in factor if factor_trains[i]]
        outputs = list(u)
        for i, c in factor.items():  # in u's own memory; c has its own precision within the one pass
            y = torch.mul(u[i], c, out=u[i] if keep_x or i not in learning else torch.empty_like(u[i]))
            outputs[i] = y.add_(bias[i]) if i in bias else y
        kept = [outputs[i] if keep_x else u[i] for i in learning]
        ctx.plan, ctx.shape, ctx.dtype = plan, x.shape, x.dtype
        ctx.save_for_backward(rows if keep_x else None, z, seed, *flat, *kept)
        ctx.set_materialize_grads(False)
        # the next layer may write into what is not a view
        given = [torch.ops.aten._unsafe_view(y, (*x.shape[:-1], y.shape[1])) for y in outputs]
        ctx.written = [_written(given[i]) for i in learning]
        return tuple(given)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:
        plan, needs = ctx.plan, ctx.needs_input_grad
        rows, z, seed, *saved = ctx.saved_tensors
        W, bias, factor, B, A = plan.cut(saved[: len(needs) - 3])
        _, bias_trains, factor_trains, B_trains, A_trains = plan.cut(needs[3:])
        kept = dict(zip([i for i in factor if factor_trains[i]], saved[len(needs) - 3 :], strict=True))
        if all(dy is None for dy in slopes):
            return (None,) * len(needs)
        dY = [dy if dy is None else _as(dy.reshape(-1, dy.shape[-1]), z.dtype) for dy in slopes]
        dbias = {i: dY[i].sum(0, dtype=bias[i].dtype) if bias_trains[i] and dY[i] is not None else None for i in bias}
        is_u = dict.fromkeys(kept, rows is None)
        for i, written in zip(kept, ctx.written, strict=True):
            if rows is not None and written():
                kept[i], is_u[i] = _u(plan, i, rows, W[i], z, B), True
        dfactor = {i: _reweigh(dY, i, c, kept.get(i), is_u.get(i, True), bias.get(i)) for i, c in factor.items()}
        G = z.new_empty(z.shape) if _few(plan) else z.new_empty(z.shape[::-1]).mT  # (R, T)
        dB = _dB(plan, dY, B, B_trains, z, G)
        lost = fallen((z.shape[1], A[0].shape[1]), plan.rate, seed) if seed is not None else None
        dA: list[Tensor | None] = [None] * len(A)
        if rows is not None:
            split = (G @ (rows if lost is None else rows.masked_fill(lost, 0.0))).split_with_sizes(plan.ranks)
            reached = {read for read, i in zip(plan.reads, plan.owners, strict=True) if dY[i] is not None}
            wanted = [trains and i in reached for i, trains in enumerate(A_trains)]
            dA = [_as(g, A_i.dtype) if each else None for g, A_i, each in zip(split, A, wanted, strict=True)]
        dx = _dx(dY, W, G, A, lost).view(ctx.shape).to(ctx.dtype) if needs[0] else None
        return (dx, None, None, *[None] * plan.layers, *dbias.values(), *dfactor.values(), *dB, *dA)


def _compute_dtype(x: Tensor, W: Tensor) -> torch.dtype:
    device = x.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    if x.dtype != W.dtype:  # as the layer itself says
        raise RuntimeError(f"x is {x.dtype} and the layer's weight {W.dtype}: cast one of them, or use torch.autocast")
    return W.dtype


def _as(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t if t.dtype == dtype else t.to(dtype)


def _few(plan: Plan) -> bool:
    return max(plan.ranks) < _FEW


def _stacked(A: Sequence[Tensor], dtype: torch.dtype) -> Tensor:  # (R, n)
    return torch.cat([_as(each, dtype) for each in A]) if len(A) > 1 else _as(A[0], dtype)


def _z(A: Tensor, dropped: Tensor, plan: Plan) -> Tensor:  # (R, T)
    return A @ dropped.mT if _few(plan) else (dropped @ A.mT).mT


def _written(y: Tensor) -> Callable[[], bool]:
    """Whether y was written into since now: its version, without its memory."""
    probe, then = y.detach(), y._version
    probe.data = y.new_empty(0)  # which leaves the counter that the two share
    return lambda: probe._version != then


def _u(plan: Plan, i: int, rows: Tensor, W: Tensor, z: Tensor, B: Sequence[Tensor]) -> Tensor:
    """One layer's u once more."""
    u = rows @ _as(W, rows.dtype).mT
    for owner, scale, z_t, B_t in zip(plan.owners, plan.scales, plan.of_terms(z), B, strict=True):
        if owner == i:
            u.addmm_(z_t.mT, _as(B_t, rows.dtype).mT, alpha=scale)
    return u


def _reweigh(
    dY: list[Tensor | None], i: int, c: Tensor, kept: Tensor | None, is_u: bool, bias: Tensor | None
) -> Tensor | None:
    """Put c∘dY in the place of a layer's dY; the slope of c, from u or from y = c∘u + b. One temporary serves both."""
    dy = dY[i]
    if dy is None:
        return None
    room = torch.empty_like(dy)
    slope = None
    if kept is not None:
        slope = torch.mul(dy, kept, out=room).sum(0, dtype=c.dtype)
        if not is_u:
            slope = slope if bias is None else slope - bias * dy.sum(0, dtype=c.dtype)
            slope = torch.where(c != 0, slope / c, 0.0)
    dY[i] = torch.mul(dy, c, out=room)
    return slope


def _dB(
    plan: Plan, dY: list[Tensor | None], B: Sequence[Tensor], trains: Sequence[bool], z: Tensor, G: Tensor
) -> list[Tensor | None]:
    """The gradients of all B's, and G, each product scaled as it is made instead of in a pass of its own."""
    few, nothing = _few(plan), z.new_empty(1)  # added 0 times
    dB: list[Tensor | None] = []
    made: set[int] = set()
    each = zip(plan.owners, plan.scales, plan.reads, B, trains, plan.of_terms(z), plan.of_terms(G), strict=True)
    for owner, scale, read, B_t, wanted, z_t, G_t in each:
        dy = dY[owner]
        if dy is None:
            dB.append(None)
            continue
        G_t.addmm_(_as(B_t, z.dtype).mT, dy.mT, beta=1 if read in made else 0, alpha=scale)
        made.add(read)
        if not wanted:
            dB.append(None)
        elif few:
            dB.append(_as(torch.addmm(nothing, z_t, dy, beta=0, alpha=scale).mT, B_t.dtype))
        else:
            dB.append(_as(torch.addmm(nothing, dy.mT, z_t.mT, beta=0, alpha=scale), B_t.dtype))
    for read, G_i in enumerate(G.split_with_sizes(plan.ranks)):
        if read not in made:
            G_i.zero_()
    return dB


def _dx(dY: list[Tensor | None], W: Sequence[Tensor], G: Tensor, A: Sequence[Tensor], lost: Tensor | None) -> Tensor:
    """Into the first layer's full product, since adding to a matrix costs less than making one."""
    dx = None
    for dy, each in zip(dY, W, strict=True):
        if dy is not None:
            dx = dy @ _as(each, dy.dtype) if dx is None else dx.addmm_(dy, _as(each, dy.dtype))
    assert dx is not None  # some output has a slope
    low = _stacked(A, G.dtype)
    return dx.addmm_(G.mT, low) if lost is None else dx.add_((G.mT @ low).masked_fill_(lost, 0.0))
