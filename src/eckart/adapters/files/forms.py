"""PEFT's types of adapters, which of them holds what, and back: METHODS' rows in the words of PEFT.

A row is written as its own PEFT type where PEFT has it and all its layers fit in; else as LORA, the exact low-rank
form; else not for PEFT at all, with the reason.
Paper: none.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from eckart.adapters.files import adalora, lora, lora_reading, lycoris, peft_config, vera
from eckart.adapters.files.stored import Entry, Held
from eckart.adapters.methods import METHODS
from eckart.adapters.settings import Settings
from eckart.nn import Matrix
from eckart.nn.files import AdapterFiles
from eckart.nn.files.adapter import PREFIX


class Form(NamedTuple):
    """How one type is checked, written and read."""

    refusal: Any  # (name, Held) → why the type cannot hold it, or None
    write: Any  # (held, settings) → (config, tensors)
    read: Any  # (config, layers, matrices) → (method, settings' fields, entries)
    suffixes: tuple[str, ...]  # of the tensors of a layer


FORMS: dict[str, Form] = {
    "LORA": Form(lora.refusal, lora.write, lora_reading.read, lora_reading.SUFFIXES),
    "ADALORA": Form(adalora.refusal, adalora.write, adalora.read, adalora.SUFFIXES),
    "VERA": Form(vera.refusal, vera.write, vera.read, vera.SUFFIXES),
    **{
        kind: Form(
            partial(lycoris.refusal, kind),
            partial(lycoris.write, kind),
            partial(lycoris.read, kind),
            lycoris.SUFFIXES[kind],
        )
        for kind in ("LOHA", "LOKR")
    },
}


class Written(NamedTuple):
    """An adapter in PEFT's words."""

    kind: str | None  # PEFT's type; None: PEFT cannot hold it
    says: str  # what it was converted to, or why not
    config: dict[str, Any]
    tensors: dict[str, Tensor]


def to_peft(
    model: nn.Module, held: Mapping[str, Held], settings: Settings, modules: Mapping[str, Mapping[str, Tensor]]
) -> Written:
    """Write an adapter in PEFT's words.

    Args:
        model: The model that has it.
        held: Matrix name → adapter.
        settings: Theirs.
        modules: Name of a module trained whole → its tensors.
    """
    own = METHODS[settings.method].peft
    lost = peft_config.refusal(list(held), list(modules)) or next(filter(None, map(_unseen, held.items())), None)
    kinds = [own] if own == "LORA" else [own, "LORA"]
    reasons = []
    for kind in kinds if lost is None else ():
        refused = [said for name, each in held.items() if (said := FORMS[kind].refusal(name, each))]
        if not refused:
            break
        reasons.append(refused[0])
    else:
        return Written(None, f"not for PEFT: {lost or reasons[-1]}", {}, {})
    config, tensors = FORMS[kind].write(held, settings)
    config = {"peft_type": kind, **peft_config.common(model, list(held), list(modules)), **config}
    for name, state in modules.items():
        tensors |= {f"{name}.{key}": tensor for key, tensor in state.items()}
    paths = dict(peft_config.modules_before(model))
    for name in peft_config.caught(model, list(modules)):  # PEFT will look for these too
        tensors |= {f"{name}.{key}": tensor for key, tensor in paths[name].state_dict().items()}
    tensors = {key if key.startswith("base_model.") else PREFIX + key: tensor for key, tensor in tensors.items()}
    return Written(kind, _said(kind, own, held, config, reasons), config, tensors)


def from_peft(files: AdapterFiles, found: Mapping[str, Matrix]) -> tuple[str, dict[str, Any], dict[str, Entry]]:
    """Read the layers of an adapter of one of these types.

    Args:
        files: What PEFT's two files hold.
        found: The model's matrices by name.

    Returns:
        Method, the settings' fields that the config says, and matrix name → Entry.

    Raises:
        ValueError: Another type, or layers that the model has not (all are named).
    """
    kind = files.config["peft_type"]
    if kind not in FORMS:
        raise ValueError(
            f"folder: it holds a {kind} adapter, and {', '.join(FORMS)} can be read; convert it with peft's "
            "convert_to_lora, or merge it there (merge_and_unload)"
        )
    layers, _ = by_layer(files, found)
    absent = [name for name in layers if name not in found]
    if absent:
        raise ValueError(
            f"folder: its adapter is of {len(absent)} layers that this model has not: {', '.join(absent)}; it was made "
            "for another base"
        )
    if not layers:
        raise ValueError(f"folder: it holds no tensors of a {kind} adapter ({', '.join(FORMS[kind].suffixes)})")
    return FORMS[kind].read(files.config, layers, found)


def by_layer(
    files: AdapterFiles, found: Mapping[str, Matrix]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The tensors of each layer by suffix, and the others by their names in the base model."""
    layers: dict[str, dict[str, Tensor]] = {}
    others = {}
    suffixes = FORMS[files.config["peft_type"]].suffixes
    for key, tensor in files.tensors.items():
        path = key.removeprefix(PREFIX)
        suffix = next((each for each in suffixes if path.endswith(f".{each}")), None)
        if key in vera.SHARED:
            continue
        if suffix is None:
            others[path] = tensor
        else:
            layers.setdefault(path.removesuffix(f".{suffix}"), {})[suffix] = tensor
    return layers, others


def _unseen(named: tuple[str, Held]) -> str | None:
    """Why PEFT's adapter of a layer would not act, whatever its type; None where it would."""
    name, (place, _) = named
    if not hasattr(place, "base"):
        return f"{name} is a parameter that no layer of its own applies"
    if place.read:
        return f"{name} is read by the module that holds it, past PEFT's wrapper"
    if place.aliases:
        return f"{name} is the same module as {', '.join(place.aliases)}, and PEFT wraps it in one place"
    return None


def _said(kind: str, own: str, held: Mapping[str, Held], config: Mapping[str, Any], reasons: list[str]) -> str:
    """What was written, in a sentence."""
    if kind != "LORA":
        lost = kind in lycoris.NAMES and next(iter(held.values())).adapter.settings.dropout
        return f"as PEFT's {kind}" + (", which knows no dropout of inputs" if lost else "")
    ranks = sorted({config["r"], *config["rank_pattern"].values()})
    said = f"as LORA of rank {ranks[0]}" if len(ranks) == 1 else f"as LORA of ranks {ranks[0]} to {ranks[-1]}"
    if any(each.adapter.frozen_B is not None for each in held.values()):
        said += ", what it started from taken out"
    return f"{said}, exactly: {reasons[0]}" if reasons else said
