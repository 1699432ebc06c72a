"""PEFT's LORA: what it stores for each layer, written (`lora_reading` reads it).

    linear, conv1d     lora_A.weight (r, n), lora_B.weight (m, r)
    convolution        lora_A.weight (r, channels, k …), lora_B.weight (m, r, 1 …)
    embedding          lora_embedding_A (r, words) = Bᵀ, lora_embedding_B (width, r) = Aᵀ
    beside them        lora_magnitude_vector (m,), lora_B.bias (m,) = b′/s

Every thin adapter is a sum s Σ B_t A_t, which is one pair: B = [B₁, …], A = [A₁; …]. A start that is taken out
(PiSSA and its kin) so doubles the rank, and the base stays the one that people have. s is one number for all layers,
since some readers (vLLM) know no other; PEFT computes it as α/r of each layer, so its patterns follow the ranks.
A grouped convolution's factors become blocks. What is no thin product is cut by its SVD at its numerical rank.
Paper: none.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eckart.adapters.files.peft_config import number, pattern
from eckart.adapters.files.stored import Held, whole
from eckart.adapters.settings import Settings
from eckart.linalg import truncated_svd


def refusal(name: str, held: Held) -> str | None:
    """Why PEFT's LORA cannot hold an adapter; None where it can."""
    place, adapter = held
    layer = place.base
    if said := unfit(name, place.kind, layer):
        return said
    if place.kind == "embedding" and (adapter.magnitude is not None or adapter.bias is not None):
        return f"{name} is an embedding with a magnitude or a bias of its rows"
    if place.kind == "conv" and place.stack > 1 and adapter.magnitude is not None:
        return f"{name} is a grouped convolution with a magnitude"
    if adapter.magnitude is not None and adapter.bias is not None and layer.bias is None:
        return f"{name} has a magnitude and a bias, and its layer has no bias to carry that"
    return None


def unfit(name: str, kind: str, layer: Any) -> str | None:
    """Why a pair for this layer would not act in PEFT as it does here; None where it would."""
    if kind == "conv" and (set(layer.dilation) != {1} or layer.padding_mode != "zeros"):
        return f"{name} is a convolution with dilation or padding_mode, which PEFT leaves out of lora_A"
    return None


def ranked(ranks: Mapping[str, int], scale: float) -> dict[str, Any]:
    """The config of pairs of these ranks with one scale."""
    r = max(ranks.values())
    alphas = {name: number(scale * rank) for name, rank in ranks.items()}
    return {
        "r": r,
        "lora_alpha": number(scale * r),
        "rank_pattern": pattern(ranks, r),
        "alpha_pattern": pattern(alphas, number(scale * r)),
        "bias": "none",
        "init_lora_weights": True,
    }


def write(held: Mapping[str, Held], settings: Settings) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config's own part, and the tensors.

    Args:
        held: Layer name → adapter.
        settings: Theirs.
    """
    pairs = {name: _pair(each) for name, each in held.items()}
    ranks = {name: pairs[name][1].shape[-2] * each.place.stack for name, each in held.items()}
    r = max(ranks.values())
    scale = next(pairs[name][2] for name, rank in ranks.items() if rank == r) or 1.0
    stabilized = settings.scaling == "alpha/sqrt(r)" and set(ranks.values()) == {r} and settings.alpha is not None
    stabilized = stabilized and settings.alpha / math.sqrt(r) == scale  # type: ignore[operator]
    with_magnitude = any(each.adapter.magnitude is not None for each in held.values())
    with_bias = any(each.adapter.bias is not None for each in held.values())
    config = ranked(ranks, scale) | {
        "lora_dropout": settings.dropout,
        "use_rslora": bool(stabilized),
        "use_dora": with_magnitude,
        "lora_bias": with_bias and not with_magnitude,
        "bias": "lora_only" if with_bias and with_magnitude else "none",
        "fan_in_fan_out": any(each.place.kind == "conv1d" for each in held.values()),
    }
    if stabilized:
        config |= {"lora_alpha": number(settings.alpha), "alpha_pattern": {}}  # type: ignore[arg-type]
    tensors: dict[str, Tensor] = {}
    for name, each in held.items():
        B, A, own = pairs[name]
        place = each.place
        layer_tensors = factors(place.kind, place.base, place.stack, B if own == scale else B * (own / scale), A)
        layer_tensors |= _beside(each, scale, with_magnitude, with_bias)
        tensors |= {f"{name}.{suffix}": tensor for suffix, tensor in layer_tensors.items()}
    return config, tensors


def _pair(held: Held) -> tuple[Tensor, Tensor, float]:
    """The adapter as one scale · B A, with a leading dimension for a stack."""
    terms = held.adapter.terms()
    if terms is None:
        return _cut(held.adapter.delta().detach())
    if len(terms) == 1:
        return terms[0].B.detach(), terms[0].A.detach(), terms[0].scale
    B, A = torch.cat([term.B for term in terms], dim=-1), torch.cat([term.A for term in terms], dim=-2)
    return B.detach(), A.detach(), terms[0].scale


def _cut(delta: Tensor) -> tuple[Tensor, Tensor, float]:
    """√S on either side, at the numerical rank in the delta's own precision."""
    U, S, Vh = truncated_svd(delta.double(), min(delta.shape[-2:]), method="exact")
    floor = S.amax(-1, keepdim=True) * torch.finfo(delta.dtype).eps
    rank = max(1, int((floor < S).sum(-1).max()))
    root = S[..., :rank].sqrt()
    B, A = U[..., :rank] * root.unsqueeze(-2), root.unsqueeze(-1) * Vh[..., :rank, :]
    return B.to(delta.dtype), A.to(delta.dtype), 1.0


def factors(kind: str, layer: Any, stack: int, B: Tensor, A: Tensor) -> dict[str, Tensor]:
    """A pair as PEFT keeps that of such a layer."""
    if kind == "embedding":
        return {"lora_embedding_A": B.mT, "lora_embedding_B": A.mT}
    if kind != "conv":
        return {"lora_A.weight": A, "lora_B.weight": B}
    weight = layer.weight
    kernel = weight.shape[2:]
    A = A.reshape(-1, *weight.shape[1:])  # (stack · r, channels of one group, k …)
    if stack > 1:
        r, channels = A.shape[0] // stack, weight.shape[1]
        wide = A.new_zeros(A.shape[0], stack * channels, *kernel)
        for group in range(stack):
            rows = slice(group * r, (group + 1) * r)
            wide[rows, group * channels : (group + 1) * channels] = A[rows]
        A = wide
    return {"lora_A.weight": A, "lora_B.weight": B.reshape(-1, B.shape[-1], *(1,) * len(kernel))}


def _beside(held: Held, scale: float, with_magnitude: bool, with_bias: bool) -> dict[str, Tensor]:
    """Magnitude and bias, as PEFT keeps them."""
    place, adapter = held
    tensors = {}
    if adapter.magnitude is not None:
        magnitude = adapter.magnitude.detach()
        kernel = place.base.weight.ndim - 2 if place.kind == "conv" else None
        shape = (-1,) if kernel is None else (1, -1, *(1,) * kernel)
        tensors["lora_magnitude_vector"] = magnitude.reshape(shape)
    if with_bias and adapter.bias is not None:
        bias = adapter.bias.detach()
        if with_magnitude:
            tensors["base_layer.bias"] = whole(place.base.bias.detach()) + bias
        else:
            tensors["lora_B.bias"] = bias / scale
    return tensors
