"""An adapter exactly as it is in the middle of training: every number of it, and the order of what is added up.

PEFT's two files say what an adapter does. To go on with training as if nothing had happened takes more: the factors
that a method trains (which PEFT's form may have multiplied out), its frozen start, and which layers are computed
together, since sums in another order differ in their last bits.

Paper: none.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from eckart.adapters.place import places
from eckart.adapters.saved_modules import saved_modules
from eckart.nn.files import read_header, read_tensor, save_safetensors
from eckart.nn.patterns import closest

FILE = "adapter_state.safetensors"


def write_state(model: nn.Module, name: str, folder: str | os.PathLike[str]) -> None:
    """Write an adapter's state beside its two files.

    Args:
        model: A model with adapters.
        name: The adapter.
        folder: An existing folder; an earlier state in it is replaced.
    """
    tensors = {f"{owner}|{key}": value for owner, part in _parts(model, name) for key, value in part.state_dict().items()}
    held = places(model, name)
    groups = {tuple(str(layer.name) for layer in place.siblings.of(place)) for place in _grouped(model, name)}
    described = json.dumps({"matrices": list(held), "groups": sorted(groups)})
    save_safetensors(Path(folder) / FILE, tensors, {"eckart": described}, force=True)


@torch.no_grad()
def read_state(model: nn.Module, name: str, folder: str | os.PathLike[str]) -> None:
    """Give an adapter of the model the state that `write_state` wrote; its parameters stay the same objects.

    Args:
        model: A model with the same adapter: same method, ranks and targets.
        name: Its name, which may be another than when it was written.
        folder: Where the file lies.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or of another adapter; the model is then as it was.
    """
    header = read_header(Path(folder) / FILE)
    parts = dict(_parts(model, name))
    wanted = {f"{owner}|{key}": (owner, key) for owner, part in parts.items() for key in _slots(part)}
    needed = {f"{owner}|{key}" for owner, part in parts.items() for key in part.state_dict()}
    _check(folder, set(header), set(wanted), needed)
    tensors = {key: read_tensor(info) for key, info in header.items()}
    for key, value in tensors.items():
        owner, slot = wanted[key]
        module, leaf = _owner(parts[owner], slot)
        parameter = module._parameters.get(leaf)
        if parameter is not None and parameter.shape != value.shape:
            raise ValueError(
                f"folder: {folder} holds {slot} of {owner} as {tuple(value.shape)}, but the model's is "
                f"{tuple(parameter.shape)}; adapt the model with the ranks of the checkpoint"
            )
    for key, value in tensors.items():
        owner, slot = wanted[key]
        module, leaf = _owner(parts[owner], slot)
        parameter = module._parameters.get(leaf)
        if parameter is not None:
            parameter.copy_(value)
        else:
            module._buffers[leaf] = value.to(next(parts[owner].parameters()).device)
    _restore_groups(model, name, _described(Path(folder) / FILE))


def _parts(model: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The adapter's own modules: one for each matrix, and the modules that it trains whole."""
    for matrix, place in places(model, name).items():
        yield matrix, place.adapters[name]
    for path, module in saved_modules(model, name).items():
        yield f"{path} (whole)", module.copies[name]


def _slots(part: nn.Module) -> list[str]:
    """Names of all tensors that it can hold, buffers that are not there yet included."""
    empty = [
        f"{path}.{key}" if path else key
        for path, module in part.named_modules()
        for key, value in module._buffers.items()
        if value is None
    ]
    return [*part.state_dict(), *empty]


def _owner(part: nn.Module, slot: str) -> tuple[nn.Module, str]:
    path, _, leaf = slot.rpartition(".")
    return part.get_submodule(path), leaf


def _grouped(model: nn.Module, name: str) -> list[nn.Module]:
    return [place for place in places(model, name).values() if hasattr(place, "siblings")]


def _restore_groups(model: nn.Module, name: str, groups: list[list[str]]) -> None:
    held = {str(place.name): place for place in _grouped(model, name)}
    if held:
        siblings = next(iter(held.values())).siblings
        siblings.restore([[held[member] for member in members] for members in groups])  # type: ignore[operator,union-attr]


def _described(file: Path) -> list[list[str]]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return list(json.loads(opened.metadata()["eckart"])["groups"])


def _check(folder: str | os.PathLike[str], held: set[str], wanted: set[str], needed: set[str]) -> None:
    unknown, lacking = sorted(held - wanted), sorted(needed - held)
    if unknown or lacking:
        odd = (unknown or lacking)[0]
        near = closest(odd, wanted if unknown else held, whole=True)
        raise ValueError(
            f"folder: {folder} is of another adapter: {'the model has no' if unknown else 'it lacks'} {odd} (closest: "
            f"{near}); adapt the model with the method, ranks and targets of the checkpoint"
        )
