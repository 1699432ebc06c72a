"""PEFT's LORA, read: B and A of each layer, its scale, magnitude and bias, out of the layout that `lora` describes.

s = α/r, or α/√r with rsLoRA, of each layer: its r is the tensors', its α may have a pattern.
Paper: none.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eckart.adapters.files.stored import Entry
from eckart.nn import Matrix
from eckart.nn.files.adapter import SHIFTED, VARIANTS, by_pattern

SUFFIXES = (
    "lora_A.weight",
    "lora_B.weight",
    "lora_B.bias",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
    "lora_magnitude_vector.weight",
)


def read(
    config: Mapping[str, Any], layers: Mapping[str, Mapping[str, Tensor]], found: Mapping[str, Matrix]
) -> tuple[str, dict[str, Any], dict[str, Entry]]:
    """Method, the settings' fields that PEFT's file says, and the adapters.

    Args:
        config: PEFT's.
        layers: Layer name → its tensors by suffix.
        found: The model's matrices by name.

    Raises:
        ValueError: A variant whose change is not s · B A, a half of a pair missing, or shapes that do not multiply.
    """
    variants = [option for option in VARIANTS if config.get(option) and option != "use_dora"]
    if variants:
        raise ValueError(
            f"folder: it holds a LoRA variant ({', '.join(variants)}) whose change is not s · B A; merge it with peft"
        )
    stabilized = bool(config.get("use_rslora"))
    entries = {}
    for name, tensors in layers.items():
        state = _state(name, tensors, found[name])
        if config.get("use_dora") and "magnitude" not in state:
            raise ValueError(f"folder: lora_magnitude_vector of {name} is missing; save the adapter again")
        rank = state["A"].shape[-2]
        files_rank = rank * found[name].stack
        alpha = by_pattern(config.get("alpha_pattern"), name, config.get("lora_alpha", 8))
        scale = alpha / (math.sqrt(files_rank) if stabilized else files_rank)
        if "bias" in state:
            state["bias"] = state["bias"] * scale
        entries[name] = Entry(rank, scale, state)
    method = "rslora" if stabilized else "dora" if config.get("use_dora") else "lora"
    fields = {"alpha": config.get("lora_alpha", 8), "dropout": config.get("lora_dropout", 0.0)}
    return method, fields, entries


def shifted(config: Mapping[str, Any]) -> str | None:
    """The start that took itself out of the base weight, if PEFT's adapter had such a one."""
    start = str(config.get("init_lora_weights")).lower()
    return start if start.startswith(SHIFTED) else None


def _state(name: str, tensors: Mapping[str, Tensor], matrix: Matrix) -> dict[str, Tensor]:
    embedding = "lora_embedding_A" in tensors or "lora_embedding_B" in tensors
    halves = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_B.weight", "lora_A.weight")
    missing = [half for half in halves if half not in tensors]
    if missing:
        raise ValueError(f"folder: {missing[0]} of {name} is missing; save the adapter again")
    left, right = (tensors[half] for half in halves)
    state = {"B": left.mT, "A": right.mT} if embedding else _matrices(name, left, right, matrix)
    magnitude = tensors.get("lora_magnitude_vector", tensors.get("lora_magnitude_vector.weight"))
    if magnitude is not None:
        if embedding:
            raise ValueError(
                f"folder: PEFT's magnitude of the embedding {name} has one number for each column, not for each word, "
                "which cannot be read; train it again without use_dora on the embedding"
            )
        state["magnitude"] = magnitude.flatten()
    if "lora_B.bias" in tensors:
        state["bias"] = tensors["lora_B.bias"]
    return {key: tensor.contiguous() for key, tensor in state.items()}


def _matrices(name: str, B: Tensor, A: Tensor, matrix: Matrix) -> dict[str, Tensor]:
    """B and A of a layer or a convolution; a grouped convolution's are cut out of their blocks."""
    groups = matrix.stack
    if groups == 1:
        return {"B": B.flatten(1), "A": A.flatten(1)}
    rank, channels = B.shape[1], A.shape[1] // groups
    blocks = A.reshape(groups, -1, groups, channels, *A.shape[2:])
    own = torch.stack([blocks[g, :, g] for g in range(groups)])
    if A.shape[0] != groups * rank or blocks.count_nonzero() != own.count_nonzero():
        raise ValueError(
            f"folder: PEFT's adapter of the grouped convolution {name} lets every group read all channels, which the "
            "layer itself does not; train it again without that layer"
        )
    return {"B": B.reshape(groups, -1, rank), "A": own.flatten(2)}
