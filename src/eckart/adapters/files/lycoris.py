"""PEFT's LOHA and LOKR: what it stores for each layer, written and read.

    LOHA   hada_w1_a (m, r), hada_w1_b (r, n), hada_w2_a, hada_w2_b              Δ = α/r · (w1_a w1_b) ∘ (w2_a w2_b)
    LOKR   lokr_w1 (m₁, n₁) or lokr_w1_a, lokr_w1_b; lokr_w2 or lokr_w2_a, …     Δ = α/r · w1 ⊗ w2

Convolutions in their flat form (PEFT's use_effective_conv2d = False). PEFT knows no transformers Conv1D here, no
embedding, no trained bias, no magnitude, and no dropout of the inputs.
Paper: none.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from eckart.adapters.files.peft_config import number, pattern
from eckart.adapters.files.stored import Entry, Held
from eckart.adapters.settings import Settings
from eckart.nn import Matrix
from eckart.nn.files.adapter import by_pattern

HADAMARD = {"hada_w1_a": "B1", "hada_w1_b": "A1", "hada_w2_a": "B2", "hada_w2_b": "A2"}
KRONECKER = {
    "lokr_w1": "W1",
    "lokr_w1_a": "B1",
    "lokr_w1_b": "A1",
    "lokr_w2": "W2",
    "lokr_w2_a": "B2",
    "lokr_w2_b": "A2",
}
NAMES = {"LOHA": HADAMARD, "LOKR": KRONECKER}
SUFFIXES = {kind: (*names, "hada_t1", "hada_t2", "lokr_t2") for kind, names in NAMES.items()}


def refusal(kind: str, name: str, held: Held) -> str | None:
    """Why PEFT's own type cannot hold an adapter; None where it can."""
    place, adapter = held
    if place.kind not in ("linear", "conv") or place.stack > 1:
        return f"PEFT has no {kind} for {name}, a layer of kind {place.kind}"
    if adapter.magnitude is not None or adapter.bias is not None or adapter.frozen_B is not None:
        return f"PEFT's {kind} has no magnitude, bias or frozen part, as {name} has"
    if place.kind == "conv" and place.base.padding_mode != "zeros":
        return f"PEFT's {kind} pads {name} with zeros, whatever its padding_mode"
    kernel = place.base.weight.ndim - 2 if place.kind == "conv" else 0
    if kernel == 3 or (kernel == 1 and kind == "LOKR" and "W2" in adapter.factors):
        return f"PEFT's {kind} mixes up the dimensions of {name}, a convolution over {kernel} of them"
    return None


def write(kind: str, held: Mapping[str, Held], settings: Settings) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config's own part, and the tensors."""
    ranks = {name: each.adapter.rank for name, each in held.items()}
    alphas = {name: number(each.adapter.scale * each.adapter.rank) for name, each in held.items()}
    r, alpha = max(ranks.values()), max(alphas.values())
    config: dict[str, Any] = {
        "r": r,
        "alpha": alpha,
        "rank_pattern": pattern(ranks, r),
        "alpha_pattern": pattern(alphas, alpha),
        "rank_dropout": 0.0,
        "module_dropout": 0.0,
        "use_effective_conv2d": False,
        "init_weights": True,
    }
    if kind == "LOKR":
        config |= {"decompose_both": settings.options["both"], "decompose_factor": settings.options["factor"]}
    tensors = {}
    for name, (place, adapter) in held.items():
        for suffix, own in NAMES[kind].items():
            if own not in adapter._parameters:
                continue
            tensor = getattr(adapter, own).detach()
            if suffix == "lokr_w2" and place.kind == "conv":  # (m₂, n₂) with the kernel apart
                tensor = tensor.reshape(tensor.shape[0], -1, *place.base.weight.shape[2:])
            tensors[f"{name}.{suffix}"] = tensor
    return config, tensors


def read(
    kind: str,
    config: Mapping[str, Any],
    layers: Mapping[str, Mapping[str, Tensor]],
    found: Mapping[str, Matrix],
) -> tuple[str, dict[str, Any], dict[str, Entry]]:
    """Method, the settings' fields that PEFT's file says, and the adapters.

    Raises:
        ValueError: The adapter has tensors of a convolution that are not flat, or sits on a grouped one.
    """
    entries = {}
    for name, tensors in layers.items():
        odd = [suffix for suffix in tensors if suffix not in NAMES[kind]]
        if odd or found[name].stack > 1:
            raise ValueError(
                f"folder: its {kind} of {name} is no product of matrices ({', '.join(odd) or 'grouped'}); "
                "train it with use_effective_conv2d=False, or convert it with peft's convert_to_lora"
            )
        rank = by_pattern(config.get("rank_pattern"), name, config["r"])
        alpha = by_pattern(config.get("alpha_pattern"), name, config["alpha"])
        state = {NAMES[kind][suffix]: tensor.flatten(1) for suffix, tensor in tensors.items()}
        entries[name] = Entry(rank, alpha / rank, state)
    options = {"factor": config.get("decompose_factor", -1), "both": bool(config.get("decompose_both"))}
    fields = {"alpha": config["alpha"], "options": options if kind == "LOKR" else {}}
    return kind.lower(), fields, entries
