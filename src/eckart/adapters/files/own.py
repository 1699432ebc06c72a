"""eckart.json and eckart.safetensors: what PEFT's two files do not say, so that training goes on bit for bit.

eckart.json keeps the settings (method, ranks, options, evidence, base), each adapter's rank, scale and parts, and the
digest of adapter_model.safetensors as it was written with it. eckart.safetensors keeps those tensors that reading
PEFT's file does not give back bit for bit; there is none where all come back. A PEFT file that was changed since (by
training on with PEFT in the same folder) is not mixed with them: that is an error.
Paper: none.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from eckart import __version__
from eckart.adapters.files.forms import by_layer, from_peft
from eckart.adapters.files.stored import OWN_CONFIG, OWN_TENSORS, Entry, Held, Stored, state_of
from eckart.adapters.methods import METHODS
from eckart.adapters.settings import Settings
from eckart.nn import Matrix
from eckart.nn.files import AdapterFiles, read_header, read_json, read_tensor
from eckart.nn.files.adapter import TENSORS
from eckart.nn.patterns import closest

FORMAT = 1
_REMEDY = f"save the adapter again, or remove {OWN_CONFIG} and {OWN_TENSORS} to read PEFT's two files alone"


def describe(
    held: Mapping[str, Held], settings: Settings, base: dict[str, Any], name: str, modules: Mapping[str, Any], says: str
) -> dict[str, Any]:
    """What eckart.json holds, but for the digest."""
    layers = {
        key: {"rank": each.adapter.rank, "scale": each.adapter.scale, "parts": list(state_of(each.adapter))}
        for key, each in held.items()
    }
    return {
        "format": FORMAT,
        "eckart": __version__,
        "name": name,
        "written": says,
        "settings": plain({**settings.to_json(), "base": base}),
        "adapters": layers,
        "modules": {key: list(state) for key, state in modules.items()},
    }


def plain(value: Any) -> Any:
    """A value as JSON can hold it: a trained adapter is not lost for an odd number in its evidence."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(each) for each in value]
    if hasattr(value, "tolist"):  # tensors, and numbers and arrays of numpy
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if isinstance(value, str | int | None) else str(value)


def not_given_back(
    held: Mapping[str, Held], modules: Mapping[str, Mapping[str, Tensor]], back: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors that must be kept beside PEFT's file: those that it does not give back bit for bit."""
    states: dict[str, Mapping[str, Tensor]] = {name: state_of(each.adapter) for name, each in held.items()}
    kept: dict[str, Tensor] = {}
    for name, state in [*states.items(), *modules.items()]:
        given = back.get(name, {})
        kept |= {f"{name}:{key}": tensor for key, tensor in state.items() if not _same(given.get(key), tensor)}
    return kept


def read_told(folder: Path) -> dict[str, Any]:
    """eckart.json, checked as far as its own words go.

    Raises:
        ValueError: It is damaged, or of another format.
    """
    told = read_json(folder / OWN_CONFIG)
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise ValueError(f"folder: {folder / OWN_CONFIG} is not of format {FORMAT}; {_REMEDY}")
    lacking = [key for key in ("settings", "adapters", "modules", "name", "digest") if key not in told]
    if lacking or not isinstance(told["settings"], dict) or not isinstance(told["settings"].get("base"), dict):
        raise ValueError(
            f"folder: {folder / OWN_CONFIG} is damaged: it lacks {', '.join(lacking) or 'base'}; {_REMEDY}"
        )
    return told


def read_own(folder: Path, told: dict[str, Any], files: AdapterFiles | None, found: Mapping[str, Matrix]) -> Stored:
    """Read an adapter that eckart wrote.

    Args:
        folder: Where it lies.
        told: Its eckart.json.
        files: PEFT's two files beside it, if they are there.
        found: The model's matrices by name.

    Raises:
        ValueError: The files are damaged or do not belong together.
    """
    now = None if files is None else digest(folder / TENSORS)
    if now != told["digest"]:
        raise ValueError(
            f"folder: {folder / TENSORS} is not the one that {OWN_CONFIG} was written with: another tool wrote it "
            f"since, or it is damaged; {_REMEDY}"
        )
    kept = _tensors(folder)
    back = {} if files is None else given_back(files, found, told["modules"])
    try:
        entries = {
            name: Entry(layer["rank"], layer["scale"], _state(name, layer["parts"], kept, back))
            for name, layer in told["adapters"].items()
        }
        modules = {name: _state(name, keys, kept, back) for name, keys in told["modules"].items()}
        stored = Stored(_settings(told["settings"]), entries, modules, told["name"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"folder: {folder / OWN_CONFIG} is damaged ({error!r}); {_REMEDY}") from None
    _check_keys(folder, stored, told, kept)
    return stored


def given_back(
    files: AdapterFiles, found: Mapping[str, Matrix], modules: Mapping[str, Any]
) -> dict[str, dict[str, Tensor]]:
    """What reading PEFT's files gives: matrix or module name → its tensors."""
    _, _, entries = from_peft(files, found)
    _, others = by_layer(files, found)
    back = {name: entry.state for name, entry in entries.items()}
    for name in modules:
        inner = {key: tensor for key, tensor in others.items() if key.startswith(f"{name}.")}
        back[name] = {key.removeprefix(f"{name}."): tensor for key, tensor in inner.items()}
    return back


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _same(given: Tensor | None, tensor: Tensor) -> bool:
    return (
        given is not None and given.dtype == tensor.dtype and given.shape == tensor.shape and given.equal(tensor.cpu())
    )


def _tensors(folder: Path) -> dict[str, Tensor]:
    file = folder / OWN_TENSORS
    return {key: read_tensor(info) for key, info in read_header(file).items()} if file.is_file() else {}


def _state(
    name: str, parts: list[str], kept: Mapping[str, Tensor], back: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    given = back.get(name, {})
    state = {part: kept.get(f"{name}:{part}", given.get(part)) for part in parts}
    return {part: tensor for part, tensor in state.items() if tensor is not None}


def _settings(told: dict[str, Any]) -> Settings:
    known = {each.name for each in fields(Settings)}
    unknown = sorted(set(told) - known)
    if unknown:
        raise ValueError(f"folder: {OWN_CONFIG} has unknown settings {', '.join(unknown)}; use a newer eckart")
    if told["method"] not in METHODS:
        close = closest(told["method"], METHODS, whole=True)
        raise ValueError(f"folder: its method {told['method']!r} is not known here; closest: {close}")
    lists = {key: tuple(told[key]) for key in ("trains", "modules_to_save")}
    return Settings(**{**told, **lists})


def _check_keys(folder: Path, stored: Stored, told: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Every part is there, and nothing else is."""
    wanted = {name: layer["parts"] for name, layer in told["adapters"].items()} | told["modules"]
    states = {name: entry.state for name, entry in stored.entries.items()} | stored.modules
    missing = [f"{name}:{part}" for name, parts in wanted.items() for part in parts if part not in states[name]]
    unknown = [key for key in tensors if key not in {f"{n}:{part}" for n, parts in wanted.items() for part in parts}]
    if missing or unknown:
        said = [f"lack {', '.join(missing)}"] * bool(missing) + [f"hold unknown {', '.join(unknown)}"] * bool(unknown)
        raise ValueError(
            f"folder: the files in {folder} {' and '.join(said)}; they are damaged: save the adapter again"
        )
