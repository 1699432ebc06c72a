"""How well a language model predicts a text."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from eckart.lm.text import marks, needed, tokenize
from eckart.nn import Progress
from eckart.nn.modes import evaluating


class Perplexity(NamedTuple):
    """exp of the mean negative log-likelihood, and over how many tokens that mean is."""

    value: float
    tokens: int


@torch.inference_mode()
def perplexity(
    model: PreTrainedModel,
    tokenizer: Tokenizer | None,
    text: str,
    *,
    context: int = 1024,
    tokens: int | None = None,
    progress: Progress | None = None,
) -> Perplexity:
    """Measure the perplexity exp(−mean log p(token | tokens before it in its window)) of a text.

    The text is tokenised whole and cut into windows that do not overlap, as most published numbers are computed; the
    first token of a window is predicted only where the tokenizer begins a text with a mark of its own.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer; None, as `load` gives it for a folder without one, is refused.
        text: What to predict.
        context: Tokens in a window, at least 2.
        tokens: How many tokens of the text to use; None uses all.
        progress: Called as progress(done, total, label) after every window.

    Returns:
        Perplexity(value, tokens): tokens counts the predictions.

    Raises:
        TypeError: The model's output has no logits over the tokenizer's words (an encoder, say).
        ValueError: There is no tokenizer, the text has too few tokens to predict one, or `context` is below 2 or
            above what the model takes.

    Example:
        >>> from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
        >>> from eckart.lm import checkpoint_path
        >>> tokenizer = AutoTokenizer.from_pretrained(checkpoint_path("minilm"))
        >>> config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=2)
        >>> model = LlamaForCausalLM(config)
        >>> _ = torch.nn.init.zeros_(model.lm_head.weight)
        >>> guess = perplexity(model, tokenizer, "a model that knows nothing")
        >>> round(guess.value) == len(tokenizer), guess.tokens
        (True, 5)
    """
    tokenizer = needed(tokenizer)
    limit = getattr(model.config, "max_position_embeddings", None) or context
    if not 2 <= context <= limit:
        raise ValueError(f"context: {context}; give from 2 to {limit} tokens, which is what the model takes")
    before, _ = marks(tokenizer)
    ids = tokenize(tokenizer, text)[:tokens]
    size = context - len(before)
    windows = [before + ids[start : start + size] for start in range(0, len(ids), size)]
    skipped = max(len(before), 1)  # a mark is not predicted, nor is a first token that nothing comes before
    windows = [window for window in windows if len(window) > skipped]
    if not windows:
        raise ValueError(
            f"text: {len(ids)} tokens, of which none has one before it to be predicted from; give more text"
        )
    total, count = 0.0, 0
    with evaluating(model):
        for done, window in enumerate(windows, 1):
            losses = _losses(model, torch.tensor([window], device=model.device))[skipped - 1 :]
            total += losses.double().sum().item()
            count += len(losses)
            if progress:
                progress(done, len(windows), "perplexity")
    return Perplexity(math.exp(total / count) if total / count < 700 else math.inf, count)


def _losses(model: PreTrainedModel, ids: Tensor) -> Tensor:  # (1, T) -> (T-1,)
    """−log p of each token but the first."""
    logits = getattr(model(input_ids=ids), "logits", None)
    if logits is None or logits.shape[:2] != ids.shape:
        raise TypeError(f"model: {type(model).__name__} predicts no next token; give a causal language model")
    return cross_entropy(logits[0, :-1].float(), ids[0, 1:], reduction="none")
