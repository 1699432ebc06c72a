"""Read an adapter that PEFT wrote: its layers, and what lies beside them in the file.

Beside the layers there may be modules trained whole, trained biases (of adapted layers: b′ = b − b₀; of others: those
modules are held whole), and copies of base weights that PEFT adds for embeddings, which must be the model's own.
Paper: none.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from eckart.adapters.files.forms import by_layer, from_peft
from eckart.adapters.files.lora_reading import shifted
from eckart.adapters.files.stored import Entry, Stored
from eckart.adapters.layers.saved_modules import modules_before
from eckart.adapters.settings import Settings
from eckart.nn import Matrix
from eckart.nn.files import AdapterFiles


def from_peft_alone(files: AdapterFiles, model: nn.Module, found: Mapping[str, Matrix], check: bool) -> Stored:
    """Read PEFT's two files where eckart's own are not there.

    Args:
        files: What they hold.
        model: The model that the adapter is for.
        found: Its matrices by name.
        check: Whether to refuse an adapter whose B A is relative to a base that PEFT changed.

    Raises:
        ValueError: See `load`.
    """
    _check_start(files.config, check)
    method, told, entries = from_peft(files, found)
    layers, others = by_layer(files, found)
    modules = dict(modules_before(model))
    _check_complete(files.config, layers, modules, found)
    whole = _take_whole(files.config, others, modules)
    _take_biases(others, modules, entries, whole)
    _drop_copies(others, modules)
    if others:
        raise ValueError(f"folder: its adapter holds tensors that nothing here takes: {', '.join(sorted(others))}")
    settings = Settings(method, {name: entry.rank for name, entry in entries.items()}, modules_to_save=tuple(whole))
    for key, value in told.items():
        setattr(settings, key, value)
    return Stored(settings, entries, whole)


def _check_start(config: Mapping[str, Any], check: bool) -> None:
    start = shifted(config)
    if start is not None and check:
        raise ValueError(
            f"folder: PEFT started this adapter with {start}, which changed the base weights, and its B A is relative "
            "to those; save it with save_pretrained's path_initial_model_for_weight_conversion, or pass check=False if "
            "this model holds the changed weights"
        )


def _check_complete(
    config: Mapping[str, Any],
    layers: Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    found: Mapping[str, Matrix],
) -> None:
    """Every layer that the config targets must have its tensors."""
    targets = config.get("target_modules")
    if not targets or targets == "all-linear" or config.get("layers_to_transform") is not None:
        return  # which layers these are, PEFT's own lists say
    excluded = (config.get("exclude_modules"), config.get("modules_to_save"))
    wanted = [
        path
        for path in modules
        if path in found and _named(path, targets) and not _named(path, excluded[0]) and not _within(path, excluded[1])
    ]
    missing = [path for path in wanted if path not in layers]
    if missing:
        raise ValueError(f"folder: its adapter lacks the tensors of {', '.join(missing)}; save it again")


def _named(path: str, names: Any) -> bool:
    """PEFT's rule: a regular expression for the whole path, or paths and their ends."""
    if not names:
        return False
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return path in names or path.endswith(tuple(f".{name}" for name in names))


def _within(path: str, names: Any) -> bool:
    return any(re.match(rf"(^|.*\.){name}($|\..*)", path) for name in names or ())


def _take_whole(
    config: Mapping[str, Any], others: dict[str, Tensor], modules: Mapping[str, nn.Module]
) -> dict[str, dict[str, Tensor]]:
    """The modules trained whole, taken out of `others`."""
    names = tuple(config.get("modules_to_save") or ())
    whole: dict[str, dict[str, Tensor]] = {}
    for path in modules:
        if names and path.endswith(names):
            keys = [key for key in others if key.startswith(f"{path}.")]
            if keys:
                whole[path] = {key.removeprefix(f"{path}."): others.pop(key) for key in keys}
    return whole


def _take_biases(
    others: dict[str, Tensor],
    modules: Mapping[str, nn.Module],
    entries: Mapping[str, Entry],
    whole: dict[str, dict[str, Tensor]],
) -> None:
    """Biases that PEFT trained with bias="lora_only" or "all", taken out of `others`."""
    for key in [key for key in others if key.endswith(".bias")]:
        path = key.removesuffix(".bias").removesuffix(".base_layer")
        module = modules.get(path)
        base = None if module is None else module._parameters.get("bias")
        if module is None or base is None or base.shape != others[key].shape:
            continue  # named by the caller
        value = others.pop(key)
        if path in entries:
            change = value.to(base.device) - base.detach().to(value.dtype)
            entries[path].state["bias"] = change
        elif not value.equal(base.detach().cpu().to(value.dtype)):
            whole[path] = {k: tensor.detach().clone() for k, tensor in module.state_dict().items()} | {"bias": value}


def _drop_copies(others: dict[str, Tensor], modules: Mapping[str, nn.Module]) -> None:
    """Copies of the base's own weights, which PEFT adds for embeddings; others than the model's stay."""
    for key, value in list(others.items()):
        path, _, attribute = key.replace(".base_layer.", ".").rpartition(".")
        module = modules.get(path)
        base = None if module is None else module._parameters.get(attribute)
        if base is not None and base.shape == value.shape and value.equal(base.detach().cpu().to(value.dtype)):
            del others[key]
