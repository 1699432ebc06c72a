"""Models with their tokenizers, from the Hub, from disk, or built in."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging

from eckart.lm.gguf import converted
from eckart.lm.resolve import ALIASES, local_path
from eckart.nn import Progress
from eckart.nn.files import open_checkpoint

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "vocab.json")


class LanguageModel(NamedTuple):
    """A model ready for use, and what belongs to it."""

    model: PreTrainedModel
    tokenizer: Tokenizer | None  # None: the folder has none (an image model, say)
    name: str


def load(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> LanguageModel:
    """Load a model and its tokenizer.

    Args:
        name_or_path: A built-in alias ("smollm2-135m", "minilm"), a folder that save_pretrained wrote, a .gguf file, or
            a name on the Hub (only from the local cache where HF_HUB_OFFLINE=1). A GGUF file is converted at its first
            load into the user's cache folder.
        dtype: The type of the weights.
        device: Where to put them; None is the CPU.
        progress: Called as progress(done, total, label) while a GGUF file is converted.

    Returns:
        LanguageModel(model, tokenizer, name): the model in eval mode, of the class that its config names, with its
        language head if it has one.

    Raises:
        FileNotFoundError: There is no such alias's package, folder or name; the message says what to run.
        ValueError: The folder holds a damaged file or a pickle, or lacks weights of the model.

    Example:
        >>> model, tokenizer, name = load("minilm")
        >>> type(model).__name__, model.num_parameters(), model.training, name
        ('BertModel', 22713216, False, 'minilm')
    """
    path = local_path(name_or_path)
    if path is not None:
        path = converted(path, progress) if path.suffix == ".gguf" else _checked(path)
    source = str(path or name_or_path)
    with without_bars():
        try:
            model = _build(source, dtype)
            tokenizer = AutoTokenizer.from_pretrained(source) if _has_tokenizer(path) else None
        except OSError as error:
            if path is not None:
                raise
            raise FileNotFoundError(_not_found(source, error)) from error
    nn.Module.to(model, device=device)
    return LanguageModel(model.eval(), tokenizer, str(name_or_path))


def _build(source: str, dtype: torch.dtype) -> PreTrainedModel:
    """The model as the class that its config names, and never with weights that no file gave."""
    config = AutoConfig.from_pretrained(source)
    named = next((getattr(transformers, name, None) for name in config.architectures or ()), None)
    causal = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    builder: Any = named or (AutoModelForCausalLM if causal else AutoModel)
    model, report = builder.from_pretrained(source, dtype=dtype, use_safetensors=True, output_loading_info=True)
    lacking = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if lacking:
        raise ValueError(
            f"name_or_path: {source} lacks {len(lacking)} weights of {type(model).__name__}, which would be random "
            f"({', '.join(lacking[:3])}); give a whole checkpoint, or build the model yourself and pass that"
        )
    return model


def _checked(path: Path) -> Path:
    """A folder whose files are whole and hold no pickle."""
    if path.is_file():
        raise ValueError(f"name_or_path: {path} is a file; give the folder that save_pretrained wrote, or a .gguf file")
    open_checkpoint(path)
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"name_or_path: {path} holds no config.json; give a folder that save_pretrained wrote")
    return path


def _has_tokenizer(path: Path | None) -> bool:
    return path is None or any((path / name).is_file() for name in TOKENIZER_FILES)


def _not_found(source: str, error: OSError) -> str:
    built_in = f"{source!r} is not a folder, a .gguf file or a built-in model ({', '.join(ALIASES)})"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        cause = "it is not in the Hub's local cache either, and HF_HUB_OFFLINE=1 forbids fetching it: unset that"
    else:
        cause = (
            f"it could not be had from the Hub either ({str(error).splitlines()[0]}): check the name and the network"
        )
    return f"name_or_path: {built_in}; {cause}, or give a folder"


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Keep transformers' own progress bars out of ours."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
