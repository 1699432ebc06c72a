"""`load`: put an adapter from files onto a model, to use it or to train on.

Everything is read, checked and made before the model is touched; after an error it is as it was.
Paper: none.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eckart.adapters.adapter import Adapter
from eckart.adapters.adapting import Adaptation, summary
from eckart.adapters.changing.replicas import plain
from eckart.adapters.choosing.targets import matrices_by_name
from eckart.adapters.files import vera
from eckart.adapters.files.identity import differences
from eckart.adapters.files.own import read_own, read_told
from eckart.adapters.files.peft_reading import from_peft_alone
from eckart.adapters.files.stored import OWN_CONFIG, Entry, Stored
from eckart.adapters.layers.placing import place_all
from eckart.adapters.layers.saved_modules import add_copies, check_modules, saved_modules
from eckart.adapters.methods import METHODS
from eckart.adapters.using.switching import activate, check_name
from eckart.nn import Matrix
from eckart.nn.files import AdapterFiles, read_adapter
from eckart.nn.files.adapter import CONFIG


def load(folder: str | os.PathLike[str], into: nn.Module, name: str | None = None, *, check: bool = True) -> Adaptation:
    """Put an adapter on a model, active and ready to train on.

    Reads what `save` wrote, and what PEFT writes: LORA (with use_rslora, use_dora, rank and alpha patterns, embeddings,
    convolutions, biases), ADALORA, VERA, LOHA and LOKR, with their modules_to_save.

    Args:
        folder: Where the adapter lies.
        into: The model, of the architecture and weights that the adapter was made for; it may have other adapters.
        name: What to call it; None is what it was called when it was saved ("default" for PEFT's).
        check: Whether the model must be the adapter's base (class, shapes, and a fingerprint of its weights). False
            checks names and shapes alone; an adapter of PEFT that changed its base is then put on this one as it is.

    Returns:
        Adaptation: what is adapted, and how many parameters train.

    Raises:
        FileNotFoundError: There is no adapter in the folder.
        ValueError: The model is another base, the files are damaged or of an unknown kind, tensors are missing, unknown
            or of other shapes (all are named), or the name is in use. The model is then as it was.
        RuntimeError: The model is under DDP or FSDP already.

    Example:
        >>> import tempfile
        >>> from eckart.adapters import adapt, save
        >>> model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> fresh = deepcopy(model)
        >>> done = adapt(model, rank=2)
        >>> saved = save(model, Path(tempfile.mkdtemp()) / "adapter")
        >>> print(load(saved.folder, into=fresh))
        lora "default" on 2 matrices of rank 2: 32 parameters train, 45.71 % of 70
    """
    folder, into = Path(folder), plain(into, "load onto")
    found = matrices_by_name(into)
    files = read_adapter(folder) if (folder / CONFIG).is_file() or not (folder / OWN_CONFIG).is_file() else None
    with _damage_named(folder):
        stored = _stored(folder, files, into, found, check)
        made = _made(stored, found, files)
    name = stored.name if name is None else name
    check_name(into, name)
    copies = _copies(stored, into)
    place_all(into, [found[key] for key in made], made, name)
    add_copies(into, tuple(copies), name)
    for key, copy in copies.items():
        saved_modules(into)[key].copies[name] = copy
    into.requires_grad_(False)
    activate(into, name)
    return summary(into, name)


def _stored(
    folder: Path, files: AdapterFiles | None, model: nn.Module, found: Mapping[str, Matrix], check: bool
) -> Stored:
    """What the folder holds, by eckart's files where they are there."""
    if not (folder / OWN_CONFIG).is_file():
        assert files is not None
        return from_peft_alone(files, model, found, check)
    told = read_told(folder)
    _check_base(folder, model, found, told["settings"]["base"], check)
    return read_own(folder, told, files, found)


@contextmanager
def _damage_named(folder: Path) -> Iterator[None]:
    """Files come from anywhere: what their words or tensors break in reading them is said to be their damage."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError, ArithmeticError) as error:
        raise ValueError(
            f"folder: the adapter in {folder} cannot be read, its config or tensors are malformed ({error!r}); "
            "download it or save it again"
        ) from error


def _check_base(
    folder: Path, model: nn.Module, found: Mapping[str, Matrix], known: Mapping[str, Any], check: bool
) -> None:
    """The model must be the base; with `check` False it must only have the matrices."""
    if not check:
        known = {"matrices": known.get("matrices", {})}
    try:
        said = differences(model, found, known)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"folder: {folder / OWN_CONFIG} is damaged ({error!r}); save the adapter again") from None
    if said:
        remedy = "; check=False loads it all the same" if check and not any("matri" in each for each in said) else ""
        raise ValueError(f"into: this model is not the base of the adapter in {folder}: {'; '.join(said)}{remedy}")


def _made(stored: Stored, found: Mapping[str, Matrix], files: AdapterFiles | None) -> dict[str, Adapter]:
    """The adapters, filled; nothing is placed yet."""
    shape = METHODS[stored.settings.method].shape
    made: dict[str, Adapter] = {}
    wrong: list[str] = []
    for name, entry in stored.entries.items():
        device = next(found[name].module.parameters()).device
        dtype = next((t.dtype for t in entry.state.values() if t.is_floating_point()), torch.float32)
        adapter: Any = shape(found[name], entry.rank, entry.scale, stored.settings, dtype, device)
        wrong += _fill(name, adapter, entry, device)
        made[name] = adapter
        if files is not None and files.config["peft_type"] == "VERA" and hasattr(adapter, "shared"):
            vera.share(adapter.shared, files.tensors)
    if wrong:
        raise ValueError(
            f"folder: the adapter does not fit: {'; '.join(wrong)}; the files are damaged, or of another base"
        )
    return made


def _fill(name: str, adapter: Adapter, entry: Entry, device: torch.device) -> list[str]:
    """Give an adapter its tensors; what does not fit, in words."""
    m, stack = adapter.shape[0], (adapter.stack,) if adapter.stack > 1 else ()
    wanted = {key: tensor.shape for key, tensor in adapter.state_dict().items()}
    beside = {"magnitude": torch.Size((*stack, m)), "bias": torch.Size((adapter.stack * m,))}
    wanted |= {key: shape for key, shape in beside.items() if key in entry.state}
    wanted |= {key: entry.state[key].shape for key in ("frozen_B", "frozen_A") if key in entry.state}
    wrong = [f"{name} lacks {key} {tuple(shape)}" for key, shape in wanted.items() if key not in entry.state]
    for key, tensor in entry.state.items():
        if not tensor.is_floating_point():
            wrong.append(f"{key} of {name} is of {tensor.dtype}, no floating-point type")
        elif key not in wanted:
            wrong.append(f"{name} has an unknown {key} {tuple(tensor.shape)}")
        elif tensor.shape != wanted[key]:
            wrong.append(f"{key} of {name} is {tuple(tensor.shape)}, not {tuple(wanted[key])}")
        elif key in adapter._buffers:
            adapter._buffers[key] = tensor.to(device)
        else:
            setattr(adapter, key, nn.Parameter(tensor.to(device)))
    return wrong + _frozen_apart(name, adapter)


def _frozen_apart(name: str, adapter: Adapter) -> list[str]:
    """The frozen pair must multiply to the matrix."""
    B, A = adapter.frozen_B, adapter.frozen_A
    if B is None and A is None:
        return []
    if B is None or A is None or (B.shape[-2], A.shape[-1]) != adapter.shape or B.shape[-1] != A.shape[-2]:
        return [f"the frozen pair of {name} is {[None if t is None else tuple(t.shape) for t in (B, A)]}"]
    return []


def _copies(stored: Stored, model: nn.Module) -> dict[str, nn.Module]:
    """Copies of the modules trained whole, filled; nothing is placed yet."""
    check_modules(model, stored.modules)
    copies = {}
    for name in stored.modules:
        held = saved_modules(model).get(name)
        copy = deepcopy(held.original if held is not None else model.get_submodule(name)).requires_grad_(False)
        copies[name] = _filled(name, copy, stored.modules[name])
    return copies


def _filled(name: str, copy: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy with these tensors, in their own dtype."""
    try:
        for key, tensor in state.items():
            owner = copy.get_submodule(key.rpartition(".")[0])
            own = getattr(owner, key.rpartition(".")[2])
            if isinstance(own, nn.Parameter) and own.shape == tensor.shape and own.dtype != tensor.dtype:
                setattr(owner, key.rpartition(".")[2], nn.Parameter(own.detach().to(tensor.dtype), requires_grad=False))
        copy.load_state_dict(dict(state))
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"folder: its tensors of {name}, trained whole, do not fit: {error}") from None
    return copy
