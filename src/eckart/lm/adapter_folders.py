"""Adapters in folders: what they are, and their sums.

Paper: none.
"""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eckart.adapters import combine, used_ranks, write_pairs
from eckart.adapters.files.own import read_told
from eckart.adapters.files.stored import OWN_CONFIG
from eckart.lm.load import load
from eckart.nn.files import AdapterFiles, LoraPair, lora_pairs, read_adapter, read_json, write_json
from eckart.nn.files.adapter import CONFIG


def describe(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What an adapter's folder holds, as plain data.

    Args:
        folder: Where PEFT's or eckart's files lie.

    Returns:
        method, peft_type, base, ranks (matrix → rank), used (matrix → rank that holds 99 % of its change; empty where
        the change is no plain product), parameters, bytes, notes.

    Raises:
        FileNotFoundError: There is no adapter.
        ValueError: Its files are damaged.
    """
    folder = Path(folder)
    own = read_told(folder) if (folder / OWN_CONFIG).is_file() else None
    files = read_adapter(folder) if own is None or (folder / CONFIG).is_file() else None
    notes: list[str] = []
    pairs = {} if files is None else _pairs(files, notes)
    ranks = {name: int(pair.A.shape[0]) for name, pair in pairs.items()}
    if own is not None:
        ranks = {name: layer["rank"] for name, layer in own["adapters"].items()}
        notes.append(f"written {own['written']}" if "written" in own else "written by eckart")
    settings = own["settings"] if own is not None else {}
    config = files.config if files is not None else {}
    tensors = files.tensors.values() if files is not None else ()
    return {
        "method": settings.get("method", str(config.get("peft_type", "")).lower()),
        "peft_type": config.get("peft_type"),
        "base": config.get("base_model_name_or_path") or settings.get("base", {}).get("name"),
        "ranks": ranks,
        "used": used_ranks(pairs),
        "parameters": sum(tensor.numel() for tensor in tensors),
        "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        "notes": notes,
    }


def combine_folders(
    folders: Sequence[str | os.PathLike[str]],
    weights: Sequence[float] | None,
    out: str | os.PathLike[str],
    *,
    rank: int | None = None,
    energy: float | None = None,
    base: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> dict[str, LoraPair]:
    """The weighted sum of LoRA adapters, written as one.

    Args:
        folders: The adapters.
        weights: One for each; None for ones.
        out: Folder for the sum.
        rank: As for `eckart.adapters.combine`.
        energy: Likewise.
        base: Their model, as `load` takes it; needed where a layer is not linear.
        force: Replace an adapter that is already there.

    Returns:
        Matrix name → pair.

    Raises:
        ValueError: An adapter that is no plain LoRA, adapters of different bases or shapes, a layer that only the base
            can tell from a linear one.
    """
    found = [read_adapter(folder) for folder in folders]
    names = {each.config.get("base_model_name_or_path") for each in found} - {None, ""}
    if len(names) > 1:
        raise ValueError(f"folders: these adapters are of different bases ({', '.join(sorted(map(str, names)))})")
    for folder, each in zip(folders, found, strict=True):
        odd = [key for key, tensor in each.tensors.items() if tensor.ndim > 2 or "lora_embedding" in key]
        if base is None and (odd or each.config.get("fan_in_fan_out")):
            raise ValueError(
                f"base: {folder} changes layers that are not linear ({odd[0] if odd else 'fan_in_fan_out'}); say which "
                "model they belong to (--base)"
            )
    total = combine([lora_pairs(each) for each in found], weights, rank=rank, energy=energy)
    write_pairs(out, total, None if base is None else load(base).model, force=force)
    config = read_json(Path(out) / CONFIG)
    known = {key: found[0].config.get(key) for key in ("base_model_name_or_path", "task_type")}
    write_json(Path(out) / CONFIG, known | {key: v for key, v in config.items() if v is not None}, force=True)
    return total


def _pairs(files: AdapterFiles, notes: list[str]) -> dict[str, LoraPair]:
    """The plain products in an adapter; why there are none goes to the notes."""
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            return lora_pairs(files)
    except ValueError as error:
        notes.append(str(error).partition(";")[0].removeprefix("adapter: "))
        return {}
    finally:
        notes += [str(each.message) for each in heard]
