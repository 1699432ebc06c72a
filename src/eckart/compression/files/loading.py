"""`load`: put a compressed model from files onto a fresh dense one of the same architecture.

Everything is read, checked and built before the model is touched; after an error it is as it was.
Paper: none.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eckart.compression.files.description import FORMAT, Specs, build, check_specs
from eckart.compression.files.guard import guard
from eckart.compression.files.saving import HOLDS, OWN
from eckart.nn.files import open_checkpoint, read_json
from eckart.nn.replace import replace_all

CONFIG, METHOD = "config.json", "eckart"


def load(folder: str | os.PathLike[str], into: nn.Module) -> nn.Module:
    """Put the layers and the weights of a saved compressed model on a model.

    Reads what `save` wrote, and what a transformers model's `save_pretrained` wrote after `import eckart.lm`.

    Args:
        folder: Where it lies.
        into: A dense model of the architecture that was compressed; all of its weights are overwritten, in its own
            dtype and on its own devices.

    Returns:
        `into`, with the compressed layers in their places.

    Raises:
        FileNotFoundError: There is no such model in the folder, or a file of it is missing.
        ValueError: The files are damaged, or of another model (what does not fit is named). `into` is then as it was.

    Example:
        >>> import tempfile
        >>> from copy import deepcopy
        >>> from eckart.compression import compress, save
        >>> model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        >>> fresh = deepcopy(model)
        >>> done = compress(model, ranks={"0": 2}, method="svd")
        >>> folder = Path(tempfile.mkdtemp()) / "small"
        >>> save(model, folder)
        >>> load(folder, into=fresh)[0]
        FactoredLinear(in_features=16, out_features=16, rank=2, bias=True)
    """
    folder = Path(folder)
    specs, source = told(folder)
    if any(parameter.is_meta for parameter in into.parameters()):
        raise ValueError("into: it is on the meta device, and has no memory to load into; build it on a real one")
    layers = build(specs, into, source)
    tensors = open_checkpoint(folder)
    kept = _kept(into, layers)
    wanted = {f"{name}.{key}": each for name, layer in layers.items() for key, each in layer.state_dict().items()}
    for name, spec in specs.items():
        wanted.pop(f"{name}.A" if "shares" in spec else "", None)
    _check(folder, {key: info.shape for key, info in tensors.infos.items()}, wanted, kept, layers)
    read = {key: tensors.read(key) for key in tensors.infos if key in wanted or key in kept}
    _fill(specs, layers, read, into)
    replace_all(into, layers)
    with torch.no_grad():
        for key, tensor in read.items():
            if key in kept:
                kept[key].copy_(tensor)
    guard(into)
    return into


def told(folder: Path) -> tuple[Specs, str]:
    """The specs that a folder holds, and the file that says them.

    Raises:
        FileNotFoundError: No file of the folder tells of compressed layers.
        ValueError: It is damaged, or of another format.
    """
    for file, content in _descriptions(folder):
        return specs_of(content, str(file)), str(file)
    raise FileNotFoundError(
        f"folder: {folder} holds no compressed model, neither in {OWN} nor in {CONFIG}; give a folder that "
        "eckart.save or save_pretrained wrote of one"
    )


def holds_compressed(folder: Path) -> bool:
    """Whether a file of the folder tells of compressed layers, rightly or not."""
    return next(_descriptions(folder), None) is not None


def _descriptions(folder: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    if (own := folder / OWN).is_file():
        content = read_json(own)
        if isinstance(content, dict) and content.get("holds") == HOLDS:
            yield own, content
    if (config := folder / CONFIG).is_file():
        content = read_json(config)
        content = content.get("quantization_config") if isinstance(content, dict) else None
        if isinstance(content, dict) and content.get("quant_method") == METHOD:
            yield config, content


def specs_of(content: Mapping[str, Any], source: str) -> Specs:
    """The specs in a file of ours.

    Raises:
        ValueError: It is damaged, or of another format.
    """
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{source} is of format {content.get('format')!r}, and this version of eckart reads {FORMAT}; use the "
            "version that wrote it, or write it again"
        )
    return check_specs(content.get("layers"), source)


def _kept(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors of a model that no layer's place holds."""
    inside = tuple(f"{name}." for name in layers)
    state = model.state_dict(keep_vars=True)
    return {key: value for key, value in state.items() if not key.startswith(inside) and isinstance(value, Tensor)}


def _check(
    folder: Path,
    found: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
    layers: Mapping[str, nn.Module],
) -> None:
    """What the files hold must be what the model needs: no more, no less, and of the same shapes."""
    there = {id(kept[key]) for key in found if key in kept}  # a tied weight may be stored under any of its names
    marks = {f"{name}.weight" for name in layers if f"{name}.weight" not in wanted}
    wrong = [f"it lacks {key}" for key in wanted if key not in found]
    wrong += [f"it lacks {key}" for key, tensor in kept.items() if id(tensor) not in there]
    for key, shape in found.items():
        mine = wanted.get(key, kept.get(key))
        if mine is None:
            if key not in marks:
                wrong.append(f"it has {key}, which this model has not")
        elif tuple(mine.shape) != tuple(shape):
            wrong.append(f"{key} is {tuple(shape)} there and {tuple(mine.shape)} here")
    if wrong:
        more = f", and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise ValueError(f"into: the model in {folder} is another: {'; '.join(wrong[:4])}{more}")


def _fill(specs: Specs, layers: Mapping[str, Any], read: Mapping[str, Tensor], model: nn.Module) -> None:
    """Give the empty layers their tensors, on the device of the place that they take."""
    for name, layer in layers.items():
        place = model.get_submodule(name)
        owned = next(tensor for tensor in (*place.parameters(), *place.buffers()))
        state = {key: read.get(f"{name}.{key}") for key in layer.state_dict()}
        if "shares" in specs[name]:
            state["A"] = read[f"{specs[name]['shares']}.A"]
        empty = layer.state_dict()
        made = {key: value.to(owned.device, empty[key].dtype) for key, value in state.items() if value is not None}
        layer.load_state_dict(made, assign=True)
        layer.requires_grad_(any(parameter.requires_grad for parameter in place.parameters()))
    for name, spec in specs.items():
        if "shares" in spec:
            layers[name].A = layers[spec["shares"]].A
