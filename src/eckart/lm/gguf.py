"""GGUF files, dequantised once into a folder of safetensors in the user's cache.

transformers dequantises a GGUF file at every load, slowly, and refuses to save the result, since it still calls the
model quantised. The values are ordinary floats by then, so the mark is taken off and the model saved: later loads read
the folder, and a model loaded from it saves like any other.
"""

import hashlib
import os
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from eckart.lm.pretrained import write_pretrained
from eckart.nn import Progress
from eckart.nn.files import atomic_directory, open_checkpoint, read_json

NEEDED = ("config.json", "tokenizer.json")


def cache_folder() -> Path:
    """Where eckart keeps what it has converted: $XDG_CACHE_HOME/eckart, or ~/.cache/eckart.

    Example:
        >>> cache_folder().name
        'eckart'
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eckart"


def converted(file: Path, progress: Progress | None = None) -> Path:
    """Give the folder that holds a GGUF file's model as float32 safetensors, making it if it is missing or damaged.

    Args:
        file: The GGUF file. A file of another name, size or time of change is another entry.
        progress: Called as progress(done, total, label) around a conversion.

    Returns:
        A folder in the cache that `from_pretrained` loads.

    Raises:
        ValueError: transformers cannot read the file; the message says why.
    """
    stat = file.stat()
    key = hashlib.sha256(f"{file.name} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    entry = cache_folder() / "gguf" / f"{file.stem}-{key}"
    if _is_whole(entry):
        return entry
    label = f"converting {file.name} once into {entry}"
    if progress:
        progress(0, 1, label)
    _convert(file, entry)
    if progress:
        progress(1, 1, label)
    return entry


def _is_whole(entry: Path) -> bool:
    """Whether an entry can be loaded: its files are there and read, and its weights reach to their last byte."""
    try:
        open_checkpoint(entry)
        return all(read_json(entry / name) for name in NEEDED)
    except (OSError, ValueError):
        return False


def _convert(file: Path, entry: Path) -> None:
    folder, name = str(file.parent), file.name
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, local_files_only=True)
    except Exception as error:  # whatever a damaged or unknown file makes the reader raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{file} cannot be read as a GGUF model ({reason}); download it again, or convert it"
        ) from error
    strip_quantization(model)
    if entry.exists():
        shutil.rmtree(entry)  # damaged, or this would not be running
    try:
        with atomic_directory(entry) as beside:
            write_pretrained(model, tokenizer, beside)
    except OSError:
        if not _is_whole(entry):  # else another process has just made the same entry
            raise


def strip_quantization(model: PreTrainedModel) -> None:
    """Take off the mark of a quantised model from one whose weights are ordinary floats, so that it can be saved."""
    for owner, name in ((model.config, "quantization_config"), (model, "hf_quantizer"), (model, "quantization_method")):
        owner.__dict__.pop(name, None)
    model.__dict__["is_quantized"] = False
