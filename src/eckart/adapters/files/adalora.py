"""PEFT's ADALORA: what it stores for each layer, written and read.

    lora_B (m, r) = P,   lora_E (r, 1) = Λ,   lora_A (r, n) = Q,     Δ = α/(r₀ + 1e-5) · P Λ Q

r₀ is `init_r` for all layers, however many triplets each has left: its `rank_pattern` masks which of r₀ they are. α is
written as s (r₀ + 1e-5), so that s comes out. PEFT knows linear layers, transformers' Conv1D and Conv2d here.
Paper: none.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from eckart.adapters.files.stored import Entry, Held
from eckart.adapters.settings import Settings
from eckart.nn import Matrix

SUFFIXES = ("lora_A", "lora_B", "lora_E")
SMALL = 1e-5  # what PEFT adds to r₀


def refusal(name: str, held: Held) -> str | None:
    """Why PEFT's ADALORA cannot hold an adapter; None where it can."""
    place, adapter = held
    plane = place.kind == "conv" and place.stack == 1 and place.base.weight.ndim == 4
    if place.kind not in ("linear", "conv1d") and not (plane and place.base.padding_mode == "zeros"):
        return f"PEFT has no ADALORA for {name}, a layer of kind {place.kind}"
    if adapter.magnitude is not None or adapter.bias is not None or adapter.frozen_B is not None:
        return f"PEFT's ADALORA has no magnitude, bias or frozen part, as {name} has"
    return None


def write(held: Mapping[str, Held], settings: Settings) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config's own part, and the tensors."""
    ranks = {name: each.adapter.rank for name, each in held.items()}
    first = max(ranks.values())
    scale = next(each.adapter.scale for each in held.values()) or 1.0
    masks = {f"{name}.lora_E": [True] * rank + [False] * (first - rank) for name, rank in ranks.items()}
    config = {
        "init_r": first,
        "target_r": max(1, round(sum(ranks.values()) / len(ranks))),
        "total_step": 1,  # PEFT wants one; the schedule is whose trains on
        "lora_alpha": scale * (first + SMALL),
        "rank_pattern": masks if set(ranks.values()) != {first} else None,
        "lora_dropout": settings.dropout,
        "bias": "none",
        "fan_in_fan_out": any(each.place.kind == "conv1d" for each in held.values()),
        "init_lora_weights": True,
    }
    tensors = {}
    for name, (_, adapter) in held.items():
        E = adapter.Lambda.detach().unsqueeze(-1)
        tensors[f"{name}.lora_A"] = adapter.Q.detach()
        tensors[f"{name}.lora_B"] = adapter.P.detach()
        tensors[f"{name}.lora_E"] = E if adapter.scale == scale else E * (adapter.scale / scale)
    return config, tensors


def read(
    config: Mapping[str, Any], layers: Mapping[str, Mapping[str, Tensor]], found: Mapping[str, Matrix]
) -> tuple[str, dict[str, Any], dict[str, Entry]]:
    """Method, the settings' fields that PEFT's file says, and the adapters."""
    first, alpha = config.get("init_r", 12), config.get("lora_alpha", 8)
    scale = (alpha if alpha > 0 else float(first)) / (first + SMALL)
    names = {"lora_A": "Q", "lora_B": "P", "lora_E": "Lambda"}
    entries = {}
    for name, tensors in layers.items():
        state = {names[suffix]: tensor for suffix, tensor in tensors.items()}
        if "Lambda" in state:
            state["Lambda"] = state["Lambda"].flatten()
        rank = state["Q"].shape[0] if "Q" in state else first
        entries[name] = Entry(rank, scale, state)
    return "adalora", {"alpha": alpha, "dropout": config.get("lora_dropout", 0.0)}, entries
