"""`save`: a compressed model as safetensors and a description, all there or none.

The folder holds the whole state of the model, dense layers too, so that it stands alone: model.safetensors (above 5 GB
shards of at most that, with model.safetensors.index.json, as transformers has them) and eckart.json, which says what
each compressed layer is. A tensor that several places hold is stored once.
Paper: none.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from eckart import __version__
from eckart.compression.files.description import FORMAT, Specs, describe
from eckart.nn.files import atomic_directory, save_safetensors, write_json

OWN, HOLDS = "eckart.json", "compressed model"
LARGEST = 5 * 10**9  # bytes of one file


def save(model: nn.Module, folder: str | os.PathLike[str], *, force: bool = False) -> None:
    """Write a compressed model to a folder, from which `load` puts it on a fresh dense model.

    The whole state is written, not the compressed layers alone. A transformers model is better saved by its own
    `save_pretrained` after `import eckart.lm`, from which `from_pretrained` reads it too.

    Args:
        model: A model with compressed layers; it is not changed.
        folder: The folder to make.
        force: Replace a folder that holds such files already.

    Raises:
        ValueError: The model has no compressed layers, or has adapters.
        FileExistsError: The folder is there and `force` is false.

    Example:
        >>> import tempfile
        >>> from eckart.compression import compress
        >>> model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        >>> done = compress(model, ranks={"0": 2}, method="svd")
        >>> folder = Path(tempfile.mkdtemp()) / "small"
        >>> save(model, folder)
        >>> sorted(file.name for file in folder.iterdir())
        ['eckart.json', 'model.safetensors']
    """
    specs = describe(model)
    if not specs:
        raise ValueError("model: it has no compressed layers; compress it first (eckart.compress)")
    told = {"format": FORMAT, "holds": HOLDS, "eckart": __version__, "class": type(model).__name__, "layers": specs}
    with atomic_directory(folder, force=force, mark=OWN) as beside:
        write_state(beside, state_of(model, specs))
        write_json(beside / OWN, told)


def state_of(model: nn.Module, specs: Specs) -> dict[str, Tensor]:
    """A model's state; what several places hold is there once, a shared basis under its holder.

    Raises:
        TypeError: It holds something that is no tensor.
    """
    held: dict[int, str] = {}
    shared = {f"{name}.A" for name, spec in specs.items() if "shares" in spec}
    state = {}
    for key, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise TypeError(f"model: its state has {key}, a {type(value).__name__}; only tensors can be written")
        if key not in shared and held.setdefault(id(value), key) == key:
            state[key] = value.detach()
    return state


def write_state(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors to a folder as model.safetensors, or as shards with their index."""
    shards = _shards(state)
    if len(shards) == 1:
        save_safetensors(folder / "model.safetensors", shards[0])
        return
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        save_safetensors(folder / name, shard)
    places = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    total = {"total_size": sum(tensor.nbytes for tensor in state.values())}
    write_json(folder / "model.safetensors.index.json", {"metadata": total, "weight_map": places})


def _shards(state: Mapping[str, Tensor]) -> list[dict[str, torch.Tensor]]:
    """The tensors in their order, in parts that fit into a file; one that is larger has a file of its own."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, tensor in state.items():
        if shards[-1] and size + tensor.nbytes > LARGEST:
            shards.append({})
            size = 0
        shards[-1][key] = tensor
        size += tensor.nbytes
    return shards
