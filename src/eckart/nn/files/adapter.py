"""PEFT's two files, adapter_config.json and adapter_model.safetensors, and the low-rank update that they hold.

A LoRA adapter changes W (m, n) to W + scale · B A with B (m, r) and A (r, n), where scale is alpha/r, or alpha/√r with
rsLoRA, and alpha may differ from layer to layer (`alpha_pattern`). r is read from the tensors themselves.
"""

import math
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from eckart.nn.files.atomic import atomic_directory, read_json, write_json
from eckart.nn.files.tensors import pickle_remedy, read_header, read_tensor, save_safetensors

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
# Options of a LoRA config under which the update is not scale · B A of plain modules.
VARIANTS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "arrow_config",
    "alora_invocation_tokens",
    "layer_replication",
    "target_parameters",
    "megatron_config",
)
# Starts that take their own first product out of the base weight, so that B A alone is not the change of the base.
SHIFTED = ("pissa", "olora", "corda", "loftq", "lora_ga", "milora")


class AdapterFiles(NamedTuple):
    """What the two files of a PEFT adapter hold."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]


class LoraPair(NamedTuple):
    """One low-rank update, scale · B A."""

    B: Tensor  # (m, r)
    A: Tensor  # (r, n)
    scale: float


def read_adapter(folder: str | os.PathLike[str]) -> AdapterFiles:
    """Read a PEFT adapter of any type.

    Args:
        folder: Where adapter_config.json and adapter_model.safetensors lie.

    Returns:
        config, then tensors under the names that PEFT gave them, on the CPU.

    Raises:
        FileNotFoundError: One of the two files is missing.
        ValueError: The config is malformed, or the tensors are truncated, corrupt or a pickle.

    Example:
        >>> import tempfile, torch
        >>> folder = Path(tempfile.mkdtemp()) / "adapter"
        >>> A, B = torch.ones(1, 3), torch.ones(2, 1)
        >>> tensors = {"head.lora_A.weight": A, "head.lora_B.weight": B}
        >>> write_adapter(folder, {"peft_type": "LORA", "r": 1, "lora_alpha": 2}, tensors)
        >>> sorted(read_adapter(folder).tensors)
        ['base_model.model.head.lora_A.weight', 'base_model.model.head.lora_B.weight']
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        inside = next((path.parent for path in sorted(folder.glob(f"*/{CONFIG}"))), None)
        hint = f"did you mean {inside}?" if inside else "give the folder of a PEFT adapter"
        raise FileNotFoundError(f"folder: {folder} holds no {CONFIG}; {hint}")
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise ValueError(f"{folder / CONFIG} is malformed: it names no peft_type; download or write it again")
    if not (folder / TENSORS).is_file():
        if (folder / PICKLE).is_file():
            raise ValueError(f"folder: {folder} holds a pickle, {PICKLE}; {pickle_remedy(folder / PICKLE)}")
        raise FileNotFoundError(f"folder: {folder} holds no {TENSORS}; download or write the adapter again")
    return AdapterFiles(config, {key: read_tensor(info) for key, info in read_header(folder / TENSORS).items()})


def lora_pairs(adapter: str | os.PathLike[str] | AdapterFiles) -> dict[str, LoraPair]:
    """Read a LoRA adapter as one low-rank update for each matrix.

    B A is in the orientation of `nn.matrices`: (out, in) for a linear layer, also where the base is a transformers
    Conv1D (which stores the transpose); (out, in·k·k) for a convolution; (words, width) for an embedding. Tensors that
    are no such update (biases, modules_to_save) are left out and warned of by name.

    Args:
        adapter: Where adapter_config.json and adapter_model.safetensors lie, or what `read_adapter` gave.

    Returns:
        Name of the matrix in the base model → LoraPair(B (m, r), A (r, n), scale).

    Raises:
        FileNotFoundError: One of the two files is missing.
        ValueError: The adapter is of another type than LoRA, is a variant whose update is not scale · B A (DoRA, …),
            acts on a grouped convolution, or lacks one half of a pair; or its alpha_pattern is malformed.

    Example:
        >>> import tempfile, torch
        >>> folder = Path(tempfile.mkdtemp()) / "adapter"
        >>> A, B = torch.ones(1, 3), torch.ones(2, 1)
        >>> tensors = {"head.lora_A.weight": A, "head.lora_B.weight": B}
        >>> write_adapter(folder, {"peft_type": "LORA", "r": 1, "lora_alpha": 2}, tensors)
        >>> pair = lora_pairs(folder)["head"]
        >>> tuple(pair.B.shape), tuple(pair.A.shape), pair.scale
        ((2, 1), (1, 3), 2.0)
    """
    config, tensors = adapter if isinstance(adapter, AdapterFiles) else read_adapter(adapter)
    folder = "the adapter" if isinstance(adapter, AdapterFiles) else str(adapter)
    _check_lora(folder, config)
    halves: dict[str, dict[str, Tensor]] = {}
    others = []
    for key, tensor in tensors.items():
        match = re.fullmatch(r"(?P<name>.+)\.lora_(?P<half>A\.weight|B\.weight|embedding_A|embedding_B)", key)
        if match:
            halves.setdefault(match["name"].removeprefix(PREFIX), {})[match["half"].removesuffix(".weight")] = tensor
        else:
            others.append(key)
    if others:
        warnings.warn(f"{folder} also changes what is no low-rank update, left out: {', '.join(others)}", stacklevel=2)
    if not halves:
        raise ValueError(f"adapter: {folder} holds no lora_A and lora_B tensors; save the adapter again with PEFT")
    return {name: _pair(folder, name, pair, config) for name, pair in halves.items()}


def write_adapter(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    force: bool = False,
) -> None:
    """Write an adapter as PEFT's two files, which `peft.PeftModel.from_pretrained` loads.

    Args:
        folder: The folder to make.
        config: PEFT's configuration; it must hold at least peft_type.
        tensors: Name → tensor; PEFT's prefix "base_model.model." is put before names that lack it.
        force: Replace a folder that is already there.

    Raises:
        FileExistsError: `folder` exists and `force` is false.
        ValueError: No peft_type, or no tensors.

    Example:
        >>> import tempfile, torch
        >>> write_adapter(Path(tempfile.mkdtemp()) / "adapter", {"r": 8}, {"head.lora_A.weight": torch.ones(8, 3)})
        Traceback (most recent call last):
        ValueError: config names no peft_type (it has r); give PEFT's configuration, such as {"peft_type": "LORA", ...}
    """
    if not isinstance(config.get("peft_type"), str):
        raise ValueError(
            f"config names no peft_type (it has {', '.join(sorted(config)) or 'nothing'}); give PEFT's configuration, "
            'such as {"peft_type": "LORA", ...}'
        )
    if not tensors:
        raise ValueError("tensors is empty; an adapter holds at least one tensor")
    with atomic_directory(folder, force=force, mark=CONFIG) as beside:
        write_json(beside / CONFIG, dict(sorted(config.items())))
        save_safetensors(beside / TENSORS, {_prefixed(key): tensor for key, tensor in tensors.items()})


def _prefixed(key: str) -> str:
    return key if key.startswith(PREFIX) else PREFIX + key


def _check_lora(folder: str, config: dict[str, Any]) -> None:
    """Refuse what is not scale · B A, and warn of an update that is relative to a changed base."""
    if config["peft_type"] != "LORA":
        raise ValueError(
            f"adapter: {folder} is a {config['peft_type']} adapter, and only LORA is read as B A; "
            "merge it with peft (merge_and_unload) and give the merged model instead"
        )
    variants = [option for option in VARIANTS if config.get(option)]
    if variants:
        raise ValueError(
            f"adapter: {folder} is a LoRA variant ({', '.join(variants)}) whose update is not scale · B A; "
            "merge it with peft (merge_and_unload) and give the merged model instead"
        )
    start = str(config.get("init_lora_weights")).lower()
    if start.startswith(SHIFTED):
        warnings.warn(
            f"{folder} started from {start}, which changes the base weight, and its B A is relative to that changed "
            "base; to compare it with the base itself, convert it to a plain LoRA when saving it "
            "(save_pretrained's path_initial_model_for_weight_conversion)",
            stacklevel=3,
        )


def _pair(folder: str, name: str, halves: dict[str, Tensor], config: dict[str, Any]) -> LoraPair:
    """The two halves as matrices, with their scale."""
    if len(halves) != 2:
        raise ValueError(f"adapter: {folder} holds only lora_{next(iter(halves))} for {name!r}; save the adapter again")
    if "embedding_A" in halves:  # stored as (r, words) and (width, r); the weight is (words, width)
        B, A = halves["embedding_A"].T, halves["embedding_B"].T
    else:
        B, A = halves["B"].flatten(1), halves["A"].flatten(1)
    if B.shape[1] != A.shape[0]:
        raise ValueError(
            f"adapter: {folder} holds B {tuple(B.shape)} and A {tuple(A.shape)} for {name!r}, which do not multiply "
            "(a grouped convolution, or a damaged file); leave that layer out of the adapter"
        )
    rank = A.shape[0]
    alpha = by_pattern(config.get("alpha_pattern"), name, config.get("lora_alpha", 8))
    return LoraPair(B, A, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def by_pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that is a regular expression for the end of the name."""
    for key, value in (patterns or {}).items():
        try:
            found = re.match(rf"(.*\.)?({key})$", name)
        except re.error as error:
            raise ValueError(
                f"adapter: a pattern in its {CONFIG} has {key!r}, which is no regular expression ({error}); mend it"
            ) from None
        if found:
            return value
    return default
