"""How fast language models read a prompt and write after it, several of them side by side.

Prefill is one pass over a prompt, its logits for all positions; decode is one pass for each new token, with the keys
and values of the earlier ones cached. The models take turns within each round, so that whatever else the machine does
falls on all of them, and a ratio is the median of the rounds' ratios. Times alone are of this machine at that hour:
compare ratios.
Paper: none.
"""

import inspect
import os
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eckart.compression.files.densifying import densify
from eckart.compression.files.originals import is_compressed_model
from eckart.lm.judging.speeds import Bench, speeds_of
from eckart.lm.load import load
from eckart.nn import Progress
from eckart.nn.modes import evaluating

Model = PreTrainedModel | str | os.PathLike[str]
DENSE, COMPRESSED = "dense", "compressed"  # what the two are called where one compressed model is given


def bench(
    models: Model | Mapping[str, Model],
    *,
    prompt: int = 256,
    new: int = 32,
    batch: int = 1,
    rounds: int = 7,
    seed: int = 0,
    progress: Progress | None = None,
) -> Bench:
    """Measure how fast models read and write, in one interleaved run.

    Args:
        models: What each is called → the model, or what `load` takes; the first is what the others are compared with.
            A compressed model alone is compared with its own dense form.
        prompt: Tokens of the prompt, at least 1.
        new: Tokens to write after it, at least 1.
        batch: Sequences at a time.
        rounds: How often each model is measured, after one round that does not count.
        seed: Of the tokens, which are random: what they say does not matter.
        progress: Called as progress(done, total, label) after each round.

    Returns:
        Bench: medians, quartiles and ratios of tokens per second.

    Raises:
        ValueError: No models, a number below 1, more tokens than a model takes, or models on several devices.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes))
        >>> found = bench({"one": model, "other": model}, prompt=4, new=2, rounds=1)
        >>> [(each.phase, each.model, each.tokens, each.ratio == 1) for each in found.speeds[::2]]
        [('prefill', 'one', 4, True), ('decode', 'one', 2, True)]
    """
    for name, value in (("prompt", prompt), ("new", new), ("batch", batch), ("rounds", rounds)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: {value!r}; give an integer of at least 1")
    loaded = _loaded(models)
    devices = {str(next(model.parameters()).device) for model in loaded.values()}
    if len(devices) > 1:
        raise ValueError(f"models: they are on {', '.join(sorted(devices))}; put them on one device")
    words = min(_words(model) for model in loaded.values())
    for name, model in loaded.items():
        limit = getattr(model.config, "max_position_embeddings", None)
        if limit and prompt + new > limit:
            raise ValueError(f"prompt, new: {prompt} + {new} tokens, but {name} takes at most {limit}; give fewer")
    ids = torch.randint(words, (batch, prompt + new), generator=torch.Generator().manual_seed(seed)).to(devices.pop())
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in loaded}
    for turn in range(rounds + 1):
        for name in _order(list(loaded), turn):
            times = _measured(loaded[name], ids, prompt)
            if turn > 0:  # the first round warms up
                taken[name].append(times)
        if progress is not None:
            progress(turn, rounds, "measuring speed")
    speeds = tuple(speeds_of(loaded, taken, (batch * prompt, batch * new)))
    return Bench(speeds, prompt, new, batch, rounds, torch.get_num_threads(), str(ids.device))


def dense_and(model: PreTrainedModel) -> dict[str, PreTrainedModel]:
    """A compressed model's dense form, and itself, by what they are called."""
    return {DENSE: densify(deepcopy(model)), COMPRESSED: model}  # type: ignore[dict-item]


def _loaded(models: Model | Mapping[str, Model]) -> dict[str, PreTrainedModel]:
    """The models by name; a compressed one alone is joined by its dense form."""
    if isinstance(models, Mapping):
        if not models:
            raise ValueError('models: none; give some by name, such as {"dense": model, "compressed": smaller}')
        return {name: _model(each) for name, each in models.items()}
    model = _model(models)
    if is_compressed_model(model):
        return dense_and(model)
    return {str(model.config.name_or_path or type(model).__name__): model}


def _model(given: Model) -> PreTrainedModel:
    return load(given).model if isinstance(given, str | os.PathLike) else given


def _words(model: PreTrainedModel) -> int:
    embeddings: Any = model.get_input_embeddings()
    return embeddings.weight.shape[0]


def _order(names: list[str], turn: int) -> list[str]:
    """Another one begins in every round."""
    start = turn % len(names)
    return names[start:] + names[:start]


@torch.inference_mode()
def _measured(model: PreTrainedModel, ids: Tensor, prompt: int) -> tuple[float, float]:  # (B, prompt + new)
    """Seconds of the prefill, and of the decoding."""
    argument = next(
        name for name in ("cache", "past_key_values") if name in inspect.signature(model.forward).parameters
    )
    with evaluating(model):
        output: Any = None

        def read() -> None:
            nonlocal output
            output = model(input_ids=ids[:, :prompt], use_cache=True)

        def write() -> None:
            nonlocal output
            for place in range(prompt, ids.shape[1]):
                held = {argument: output.past_key_values}
                output = model(input_ids=ids[:, place : place + 1], use_cache=True, **held)

        return _seconds(read, ids), _seconds(write, ids)


def _seconds(work: Callable[[], None], like: Tensor) -> float:
    """How long some work takes, to its end on the device."""
    _wait(like)
    began = time.perf_counter()
    work()
    _wait(like)
    return time.perf_counter() - began


def _wait(like: Tensor) -> None:
    if like.device.type != "cpu":
        torch.accelerator.synchronize(like.device)
