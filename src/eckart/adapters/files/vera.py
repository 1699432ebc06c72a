"""PEFT's VERA: what it stores, written and read.

    vera_lambda_b (m,), vera_lambda_d (r,) of each layer;   base_model.vera_A (r, N), base_model.vera_B (M, r) once

The shared pair is written too (PEFT's save_projection), so that no reader depends on another machine's random numbers.
PEFT knows linear layers and transformers' Conv1D here, one rank, no scale, no bias and no magnitude.
Paper: none.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eckart.adapters.files.stored import Entry, Held
from eckart.adapters.settings import Settings
from eckart.adapters.shapes.vectors import SharedPair
from eckart.nn import Matrix

SUFFIXES = ("vera_lambda_b", "vera_lambda_d")
SHARED = ("base_model.vera_A", "base_model.vera_B")


def refusal(name: str, held: Held) -> str | None:
    """Why PEFT's VERA cannot hold an adapter; None where it can."""
    place, adapter = held
    if place.kind not in ("linear", "conv1d"):
        return f"PEFT has no VERA for {name}, a layer of kind {place.kind}"
    if adapter.magnitude is not None or adapter.bias is not None or adapter.frozen_B is not None:
        return f"PEFT's VERA has no magnitude, bias or frozen part, as {name} has"
    if adapter.scale != 1 or adapter.rank != max(adapter.settings.ranks.values()):
        return f"PEFT's VERA has one rank and no scale, and {name} has its own"
    return None


def write(held: Mapping[str, Held], settings: Settings) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config's own part, and the tensors."""
    first: Any = next(iter(held.values())).adapter
    config = {
        "r": first.rank,
        "vera_dropout": settings.dropout,
        "projection_prng_key": settings.options["seed"],
        "save_projection": True,
        "d_initial": settings.options.get("d", 0.1),
        "bias": "none",
        "fan_in_fan_out": any(each.place.kind == "conv1d" for each in held.values()),
        "init_weights": True,
    }
    rows = max(each.place.shape[0] for each in held.values())
    columns = max(each.place.shape[1] for each in held.values())
    tensors = {SHARED[0]: first.shared.A[:, :columns], SHARED[1]: first.shared.B[:rows]}
    for name, (_, adapter) in held.items():
        tensors[f"{name}.vera_lambda_b"] = adapter.b.detach()
        tensors[f"{name}.vera_lambda_d"] = adapter.d.detach()
    return config, tensors


def read(
    config: Mapping[str, Any], layers: Mapping[str, Mapping[str, Tensor]], found: Mapping[str, Matrix]
) -> tuple[str, dict[str, Any], dict[str, Entry]]:
    """Method, the settings' fields that PEFT's file says, and the adapters."""
    names = {"vera_lambda_b": "b", "vera_lambda_d": "d"}
    entries = {
        name: Entry(config["r"], 1.0, {names[suffix]: tensor for suffix, tensor in tensors.items()})
        for name, tensors in layers.items()
    }
    sides = [max(side) for side in zip(*(found[name].shape for name in layers), strict=True)]
    options = {"seed": config.get("projection_prng_key", 0), "sizes": sides}
    return "vera", {"dropout": config.get("vera_dropout", 0.0), "options": options}, entries


def share(shared: SharedPair, tensors: Mapping[str, Tensor]) -> None:
    """Take the file's pair where it holds one: the seed's numbers may differ between machines.

    Raises:
        ValueError: Its shapes are not those of the adapted matrices.
    """
    for key, own in zip(SHARED, (shared.A, shared.B), strict=True):
        if key not in tensors:
            continue
        if tensors[key].shape != own.shape:
            raise ValueError(
                f"folder: {key} is {tuple(tensors[key].shape)}, and these matrices need {tuple(own.shape)}: a damaged "
                "file, or an adapter for another model"
            )
        with torch.no_grad():
            own.copy_(tensors[key])
