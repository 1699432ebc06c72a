"""`look`: measure a language model by its name, on text, without writing the loop."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from eckart.nn import Patterns, Progress
from eckart.spectra import Profile, measure

from .load import load
from .resolve import checkpoint_path
from .text import batches, read_text

NEEDS_TEXT = ("activations", "gradients")
LONGEST_TOKEN = 16  # characters: more text than `tokens` of these need is not read


def look(
    name: str | Path,
    *,
    of: Sequence[str] | None = None,
    mode: str = "full",
    base: str | Path | None = None,
    adapter: str | Path | None = None,
    text: str | Path | None = None,
    tokens: int = 16384,
    length: int = 512,
    targets: Patterns = None,
    exclude: Patterns = None,
    progress: Progress | None = None,
) -> Profile:
    """Measure a model on disk, on the hub, in a GGUF file, or by a built-in alias.

    The model is built only where it must run (activations, gradients); else its safetensors are scanned from disk.

    Args:
        name: A checkpoint file or folder, a hub name, a GGUF file, or an alias ("smollm2-135m", "minilm").
        of: What to measure; None measures the weights, the updates where `base` or `adapter` is given, and the
            activations where `text` is.
        mode: "full" or "fast".
        base: The model before fine-tuning.
        adapter: A PEFT adapter folder that changes `name`.
        text: A text file, a data set, or "pydoc" (English that every Python carries), which None stands for where
            `of` asks for activations or gradients.
        tokens: How many tokens of the text to run on, at most.
        length: Tokens per sequence, at most.
        targets: Patterns of the matrices to measure.
        exclude: Patterns of those to leave out.
        progress: Called with (done, total, label).

    Returns:
        A `Profile`, its `source` the given name.

    Raises:
        ValueError: Something is missing or wrong; the message says what, and what to do.
    """
    runs = text is not None if of is None else any(kind in NEEDS_TEXT for kind in of)
    if text is not None and not runs:
        raise ValueError(
            f"text is for activations and gradients, which of={list(of or [])} leaves out; add one of them"
        )
    options: dict[str, Any] = {"mode": mode, "targets": targets, "exclude": exclude, "progress": progress}
    options["base"] = None if base is None else _on_disk(base, progress)
    options["adapter"] = adapter
    if not runs:
        return replace(measure(_on_disk(name, progress), of=of, **options), source=str(name))
    source = "pydoc" if text is None else text
    words = read_text(source, limit=LONGEST_TOKEN * tokens)
    model, tokenizer, _ = load(name, progress=progress)
    length = min(length, tokens)
    fed = batches(tokenizer, words, length=length, count=math.ceil(tokens / length))
    spare = sum(batch["input_ids"].numel() for batch in fed) - tokens
    if spare > 0:  # the last sequence would go beyond `tokens`
        fed[-1] = {key: value[:, : value.shape[1] - spare] for key, value in fed[-1].items()}
    loss = next_token_loss if of is not None and "gradients" in of else None
    profile = measure(model, of=of, batches=fed, loss=loss, **options)
    details = profile.details | {"text": str(source), "tokens": sum(int(b["attention_mask"].sum()) for b in fed)}
    return replace(profile, source=str(name), details=details)


def next_token_loss(output: Any, batch: dict[str, Tensor]) -> Tensor:
    """The mean cross-entropy of each next token, in nats; padded positions do not count.

    Args:
        output: What a causal language model returned, with `logits` (B, T, words).
        batch: What it was given, with `input_ids` and `attention_mask` (B, T).

    Returns:
        A scalar, for `eckart.measure(..., loss=next_token_loss)`.

    Raises:
        ValueError: The model does not predict tokens (an encoder such as MiniLM has no logits).

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> batch = {"input_ids": torch.tensor([[3, 1]]), "attention_mask": torch.ones(1, 2)}
        >>> next_token_loss(SimpleNamespace(logits=torch.zeros(1, 2, 4)), batch)  # ln 4: it knows nothing
        tensor(1.3863)
    """
    logits = getattr(output, "logits", None)
    if logits is None:
        raise ValueError("gradients need a model that predicts tokens, this one has no logits; pass measure() a loss")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)[:, 1:]  # (B, T-1)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels.flatten().to(logits.device), ignore_index=-100)


def _on_disk(name: str | Path, progress: Progress | None) -> str | Path | nn.Module:
    """The folder of safetensors behind a name, or the built model where there is none."""
    path = checkpoint_path(name, progress)
    return load(name, progress=progress).model if path is None else path
