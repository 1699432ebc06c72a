"""`save`: an adapter as PEFT's two files, with eckart's own beside them, all there or none.

Paper: none.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from eckart.adapters.changing.replicas import by_first, unwrapped
from eckart.adapters.choosing.targets import matrices_by_name
from eckart.adapters.files.forms import Written, to_peft
from eckart.adapters.files.identity import identity
from eckart.adapters.files.own import describe, digest, given_back, not_given_back
from eckart.adapters.files.stored import OWN_CONFIG, OWN_TENSORS, Held, gathered, whole
from eckart.adapters.layers.place import places
from eckart.adapters.layers.saved_modules import saved_modules
from eckart.nn.files import AdapterFiles, atomic_directory, save_safetensors, write_json
from eckart.nn.files.adapter import CONFIG, TENSORS
from eckart.nn.patterns import closest


@dataclass(frozen=True)
class Saved:
    """What `save` wrote.

    Args:
        folder: Where.
        method: The row of `METHODS`.
        peft: PEFT's type; None where PEFT cannot hold it, and only eckart's files were written.
        says: What it was written as, in words.

    Example:
        >>> print(Saved(Path("out"), "pissa", "LORA", "as LORA of rank 16, what it started from taken out"))
        pissa in out, as LORA of rank 16, what it started from taken out
    """

    folder: Path
    method: str
    peft: str | None
    says: str

    def __str__(self) -> str:
        return f"{self.method} in {self.folder}, {self.says}"


def save(model: nn.Module, folder: str | os.PathLike[str], name: str = "default", *, force: bool = False) -> Saved:
    """Write an adapter to a folder, from which `load`, PEFT, vLLM and others read it.

    adapter_config.json and adapter_model.safetensors are PEFT's: the method's own type where PEFT has it, else the
    exact low-rank form, for the base as it is. eckart.json, and eckart.safetensors where it needs one, keep what PEFT's
    files do not say, so that training goes on from `load` bit for bit. Optimizer state is not in them. vLLM serves
    what is written as LORA, but for magnitudes, biases and modules trained whole; merge those.

    Of several processes one is to call, unless FSDP shards the model: then all must, all gather, and the first writes.

    Args:
        model: A model with adapters; it is not changed.
        folder: The folder to make.
        name: Which of the model's adapters.
        force: Replace a folder of an adapter that is already there.

    Returns:
        Saved: what was written, and what the adapter was converted to for PEFT.

    Raises:
        ValueError: The model has no such adapter, or is not the one that was adapted but holds it.
        FileExistsError: The folder is there and `force` is false.

    Example:
        >>> import tempfile
        >>> from eckart.adapters import adapt
        >>> model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> done = adapt(model, rank=2)
        >>> folder = Path(tempfile.mkdtemp()) / "adapter"
        >>> save(model, folder).says, sorted(file.name for file in folder.iterdir())
        ('as LORA of rank 2', ['adapter_config.json', 'adapter_model.safetensors', 'eckart.json'])
    """
    model = unwrapped(model)
    held = {key: Held(place, gathered(place.held[name])) for key, place in places(model, name).items()}
    if not held:
        known = list(dict.fromkeys(other for place in places(model).values() for other in place.adapters))
        raise ValueError(f"name: the model has no adapter {name!r}; closest: {closest(name, known, whole=True)}")
    settings = next(iter(held.values())).adapter.settings
    copies = {key: module.copies[name] for key, module in saved_modules(model, name).items()}
    modules = {key: {k: whole(t) for k, t in copy.state_dict().items()} for key, copy in copies.items()}
    found = {key: matrix for key, matrix in matrices_by_name(model).items() if key in held}
    other = next((key for key in held if key not in found), None)
    if other is not None:
        raise ValueError(f"model: {other} was adapted under that name in a model that this one holds; give that model")
    written = to_peft(model, held, settings, modules)
    tensors = {key: whole(tensor).cpu() for key, tensor in written.tensors.items()}
    back = given_back(AdapterFiles(written.config, tensors), found, modules) if written.kind else {}
    kept = not_given_back(held, modules, back)
    told = describe(held, settings, identity(model, found), name, modules, written.says)
    by_first(model, partial(_write, Path(folder), written, tensors, kept, told, force))
    return Saved(Path(folder), settings.method, written.kind, written.says)


def _write(
    folder: Path,
    written: Written,
    tensors: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
    told: dict[str, Any],
    force: bool,
) -> None:
    with atomic_directory(folder, force=force, mark=_mark(folder)) as beside:
        if written.kind is not None:
            write_json(beside / CONFIG, dict(sorted(written.config.items())))
            save_safetensors(beside / TENSORS, tensors)
        if kept:
            save_safetensors(beside / OWN_TENSORS, kept)
        write_json(beside / OWN_CONFIG, told | {"digest": digest(beside / TENSORS) if written.kind else None})


def _mark(folder: Path) -> str:
    """The file by which a folder that `force` may replace is known to hold an adapter."""
    return OWN_CONFIG if (folder / OWN_CONFIG).is_file() else CONFIG
