"""A model from its config alone: random weights, the same for the same seed; and a tokenizer from text alone."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL_NAMES

from eckart.lm.load import TOKENIZER_FILES, LanguageModel
from eckart.lm.resolve import checkpoint_path
from eckart.nn.files import read_json

CONFIG = "config.json"
END = "<|endoftext|>"


def from_scratch(
    name_or_config: str | os.PathLike[str] | PretrainedConfig,
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> LanguageModel:
    """Make a causal language model with random weights, as its class starts them.

    Args:
        name_or_config: A config.json, a folder that holds one (weights in it are not read), a built-in alias, a name on
            the Hub, or a transformers config.
        tokenizer: Where the tokenizer is, if not there: a folder, an alias or a name on the Hub.
        seed: Of the weights; torch's own generators stay as they are.
        dtype: The type of the weights; they are drawn in float32.

    Returns:
        LanguageModel(model, tokenizer, name), the model in eval mode.

    Raises:
        FileNotFoundError: There is no config, or no tokenizer where one was asked for.
        ValueError: The config is of no causal language model, or its vocabulary is smaller than the tokenizer's.

    Example:
        >>> import json, tempfile
        >>> place = Path(tempfile.mkdtemp()) / "config.json"
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> _ = place.write_text(json.dumps({"model_type": "llama", "vocab_size": 30522, **sizes}))
        >>> model, tokenizer, _ = from_scratch(place, tokenizer="minilm")
        >>> again = from_scratch(place).model
        >>> type(model).__name__, len(tokenizer), torch.equal(model.lm_head.weight, again.lm_head.weight)
        ('LlamaForCausalLM', 30522, True)
    """
    source = None if isinstance(name_or_config, PretrainedConfig) else _folder(name_or_config)
    config: Any = name_or_config if source is None else _config(source)
    name = config.model_type if source is None else str(name_or_config)
    words = _beside(source) if tokenizer is None else _tokenizer(tokenizer)
    size = config.get_text_config().vocab_size
    if words is not None and len(words) > size:
        raise ValueError(
            f"tokenizer: it has {len(words)} tokens, and vocab_size of {name} is {size}; "
            f"set vocab_size to {len(words)}, or give another tokenizer"
        )
    builder: Any = _builder(config, name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = builder._from_config(config, dtype=torch.float32)
    model.config.dtype = dtype
    return LanguageModel(model.to(dtype).eval(), words, name)


def learn_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """Make a tokenizer of byte pairs from text; it can write any text.

    Args:
        texts: To learn from.
        size: Tokens at most, at least 257: the bytes and an end of text.

    Raises:
        ValueError: The size is too small.

    Example:
        >>> tokenizer = learn_tokenizer(["low rank, low cost"] * 9, size=300)
        >>> tokenizer.tokenize("low rank"), tokenizer.decode(tokenizer("any μ")["input_ids"])
        (['low', 'Ġrank'], 'any μ')
    """
    if size < 257:
        raise ValueError(f"size: {size}; give at least 257 tokens")
    pairs = tokenizers.Tokenizer(tokenizers.models.BPE())
    pairs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    pairs.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=pairs, eos_token=END)


def _folder(name: str | os.PathLike[str]) -> str:
    """The folder of a config on disk, or a name on the Hub."""
    path = Path(name)
    if path.is_file() and path.suffix == ".json":
        return str(path)
    found = checkpoint_path(name)
    if found is None:
        return str(name)
    folder = found if found.is_dir() else found.parent
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"name_or_config: {folder} holds no {CONFIG}; give one that says how the model is built"
        )
    return str(folder)


def _config(source: str) -> PretrainedConfig:
    file = Path(source) if source.endswith(".json") else Path(source) / CONFIG
    if file.is_file():
        known = read_json(file)  # whose errors name file and line
        if not isinstance(known, dict) or "model_type" not in known:
            raise ValueError(f"name_or_config: {file} has no model_type; give a model's config.json")
    try:
        return AutoConfig.from_pretrained(source)
    except OSError as error:
        raise FileNotFoundError(
            f"name_or_config: {source!r} is no config.json, no folder with one and no built-in model, and the Hub has "
            f"not got it ({str(error).splitlines()[0]})"
        ) from error


def _builder(config: PretrainedConfig, name: str) -> Any:
    """The class to build: the one that the config names, or the one for its type, if it predicts the next token."""
    causal = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    named = next((each for each in config.architectures or () if each in CAUSAL_NAMES.values()), None)
    if named is not None:
        return getattr(transformers, named)
    if type(config) not in causal or config.architectures:
        said = ", ".join(config.architectures or [config.model_type])
        raise ValueError(f"name_or_config: {name} is of {said}, no causal language model; give the config of one")
    return causal[type(config)]


def _beside(source: str | None) -> Tokenizer | None:
    if source is None:
        return None
    folder = Path(source).parent if source.endswith(".json") else Path(source)
    local = folder.is_dir()
    if local and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    return AutoTokenizer.from_pretrained(folder if local else source)


def _tokenizer(name: str | os.PathLike[str]) -> Tokenizer:
    source = checkpoint_path(name) or name
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"tokenizer: there is none at {name} ({str(error).splitlines()[0]}); give a folder that holds one"
        ) from error
