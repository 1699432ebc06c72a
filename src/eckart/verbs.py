"""`load` and `save`: one verb each for adapters and compressed models, by what the folder or the model holds.

Paper: none.
"""

import os
from pathlib import Path
from typing import Any

from torch import nn

from eckart import adapters, compression
from eckart.adapters.layers.place import places
from eckart.compression.files.loading import holds_compressed
from eckart.compression.files.originals import is_compressed_model


def save(model: nn.Module, folder: str | os.PathLike[str], name: str = "default", *, force: bool = False) -> Any:
    """Write what eckart has made of a model to a folder: its adapter, or the compressed model.

    Of a model that has both, the adapter is written; its base is the compressed model, which `load` needs there.

    Args:
        model: A model with adapters (see `eckart.adapters.save`) or compressed layers (`eckart.compression.save`). A
            compressed transformers model is written as its `save_pretrained` does it (see `eckart.lm.save`).
        folder: The folder to make.
        name: Which of the model's adapters.
        force: Replace a folder of that kind that is already there.

    Returns:
        What the adapter was written as (`eckart.adapters.Saved`); None for a compressed model.

    Raises:
        ValueError: The model has neither adapters nor compressed layers, or no adapter of that name.
        FileExistsError: The folder is there and `force` is false.

    Example:
        >>> import tempfile
        >>> model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> done = adapters.adapt(model, rank=2)
        >>> save(model, Path(tempfile.mkdtemp()) / "adapter").says
        'as LORA of rank 2'
    """
    if not is_compressed_model(model) or places(model):
        return adapters.save(model, folder, name, force=force)
    if callable(getattr(model, "save_pretrained", None)):
        from eckart.lm.saving import save as save_language_model

        return save_language_model(model, None, folder, force=force)  # type: ignore[arg-type]
    return compression.save(model, folder, force=force)


def load(folder: str | os.PathLike[str], into: nn.Module, name: str | None = None, *, check: bool = True) -> Any:
    """Put what a folder holds on a model: an adapter, or the layers of a compressed model.

    Args:
        folder: What `save`, PEFT, or a compressed model's `save_pretrained` wrote.
        into: The model: the adapter's base, or a dense one of the architecture that was compressed.
        name: What to call an adapter (see `eckart.adapters.load`).
        check: Whether the model must be the adapter's base. A compressed model's folder brings all weights itself.

    Returns:
        Of an adapter, what is adapted (`eckart.adapters.Adaptation`); of a compressed model, `into`.

    Raises:
        FileNotFoundError: There is neither in the folder.
        ValueError: The files are damaged, or do not fit the model, which is then as it was.

    Example:
        >>> import tempfile
        >>> from copy import deepcopy
        >>> model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        >>> fresh, folder = deepcopy(model), Path(tempfile.mkdtemp()) / "small"
        >>> done = compression.compress(model, ranks={"2": 3}, method="svd")
        >>> save(model, folder)
        >>> load(folder, into=fresh)[2].rank
        3
    """
    if not holds_compressed(Path(folder)):
        return adapters.load(folder, into, name, check=check)
    if name is not None:
        raise ValueError(f"name: {folder} holds a compressed model, which has no name; leave it out")
    return compression.load(folder, into)
