"""An adapter put back as it was in the middle of training: the same parameters, and sums in the same order.

`eckart.save` keeps every number of an adapter. To go on as if nothing had happened takes two things more: the optimizer
holds the model's parameters, so the numbers are copied into these; and which layers are computed together must be what
it was, since sums in another order differ in their last bits.

Paper: none.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eckart.adapters.choosing.targets import matrices_before
from eckart.adapters.files.own import read_own, read_told
from eckart.adapters.files.stored import OWN_CONFIG, Stored
from eckart.adapters.layers.adapted import AdaptedLayer
from eckart.adapters.layers.place import places
from eckart.adapters.layers.saved_modules import saved_modules
from eckart.nn.files import read_adapter, read_json, write_json
from eckart.nn.files.adapter import CONFIG

GROUPS = "adapter_groups.json"
SAME = ("method", "alpha", "scaling", "dropout", "trains", "options")  # of the settings; ranks and targets by tensors


def write_groups(model: nn.Module, name: str, folder: str | os.PathLike[str]) -> None:
    """Write down which layers are computed together.

    Args:
        model: A model with adapters.
        name: The adapter.
        folder: An existing folder.
    """
    groups = {tuple(member.name for member in layer.siblings.of(layer)) for layer in _layers(model, name).values()}
    write_json(Path(folder) / GROUPS, sorted(groups), force=True)


def put_back(model: nn.Module, name: str, folder: str | os.PathLike[str]) -> None:
    """Give an adapter of the model the numbers that `eckart.save` wrote; its parameters stay the same objects.

    Args:
        model: A model with the same adapter: same method, ranks and targets.
        name: Its name, which may be another than when it was saved.
        folder: Where it lies, with the groups if they were written.

    Raises:
        FileNotFoundError: There is no adapter there.
        ValueError: It is damaged, or of another adapter; the model is then as it was.
    """
    folder = Path(folder)
    found = {matrix.name: matrix for matrix in matrices_before(model)}
    files = read_adapter(folder) if (folder / CONFIG).is_file() else None
    stored = read_own(folder, read_told(folder), files, found)
    pairs = list(_pairs(model, name, stored, folder))
    with torch.no_grad():
        for module, key, value in pairs:
            now = module._parameters.get(key, module._buffers.get(key))
            if now is not None and now.shape == value.shape:
                now.copy_(value)  # the same object, which the optimizer or other adapters hold
            else:
                module._buffers[key] = value.to(next(module.parameters()).device)
    if (folder / GROUPS).is_file():
        _restore_groups(model, name, read_json(folder / GROUPS))


def holds_adapter(folder: str | os.PathLike[str]) -> bool:
    """Whether `eckart.save` wrote an adapter to a folder."""
    return (Path(folder) / OWN_CONFIG).is_file()


def _pairs(model: nn.Module, name: str, stored: Stored, folder: Path) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Where each stored tensor goes, checked."""
    parts: dict[str, nn.Module] = {key: place.adapters[name] for key, place in places(model, name).items()}
    parts |= {key: module.copies[name] for key, module in saved_modules(model, name).items()}
    states = {key: entry.state for key, entry in stored.entries.items()} | stored.modules
    odd = sorted(set(parts) ^ set(states))
    if odd:
        raise ValueError(
            f"folder: the adapter in {folder} is another one: {odd[0]} is in "
            f"{'the model' if odd[0] in parts else 'it'} alone; adapt the model as it was when that was saved"
        )
    for owner, entry in stored.entries.items():
        now: Any = parts[owner]
        then, here = stored.settings.to_json(), now.settings.to_json()
        for key in SAME:
            if json.dumps(then[key]) != json.dumps(here[key]):
                raise ValueError(
                    f"folder: the adapter in {folder} was made with {key}={then[key]!r}, the model's with "
                    f"{here[key]!r}; adapt the model as it was when that was saved"
                )
        if now.scale != entry.scale:
            raise ValueError(
                f"folder: the adapter in {folder} has scale {entry.scale:g} for {owner}, the model's {now.scale:g}; "
                "adapt the model as it was when that was saved"
            )
    for owner, state in states.items():
        lacking = sorted(set(parts[owner].state_dict()) - set(state))
        if lacking:
            raise ValueError(f"folder: {folder} has no {lacking[0]} of {owner}; adapt the model as when it was saved")
        for path, value in state.items():
            module, key = parts[owner].get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
            parameter = module._parameters.get(key)
            if parameter is None and key not in module._buffers:
                raise ValueError(f"folder: {owner} has no {path} in the model; adapt it as when {folder} was saved")
            if parameter is not None and parameter.shape != value.shape:
                raise ValueError(
                    f"folder: {path} of {owner} is {tuple(value.shape)} in {folder} and {tuple(parameter.shape)} in "
                    "the model; adapt the model with the ranks of the checkpoint"
                )
            yield module, key, value


def _layers(model: nn.Module, name: str) -> dict[str, AdaptedLayer]:
    return {key: place for key, place in places(model, name).items() if isinstance(place, AdaptedLayer)}


def _restore_groups(model: nn.Module, name: str, groups: list[list[str]]) -> None:
    held = _layers(model, name)
    if held and all(member in held for members in groups for member in members):
        next(iter(held.values())).siblings.restore([[held[member] for member in members] for members in groups])
