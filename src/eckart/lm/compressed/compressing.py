"""`compress`: a smaller language model from a dense one and some text, evaluated, recovered and ready to be saved.

Calibration text, decomposition (`eckart.compression`), optional recovery by gradients and evaluation, one after
another. Output gradients are those of labels that the model draws (`lm.sampled_loss`), from the first 16 sequences.
Paper: none; the rows of `compression.METHODS` name theirs.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

import eckart.compression as compression
from eckart.lm.calibration import Source, calibration_data
from eckart.lm.compressed.compressed_lm import CompressedLM, size_of
from eckart.lm.compressed.recovery import HOW, How
from eckart.lm.compressed.recovery import recover as recovered
from eckart.lm.compressed.sampled_loss import SampledLoss
from eckart.lm.judging.evaluation import Evaluation, token_counts
from eckart.lm.judging.evaluation import evaluate as evaluated
from eckart.lm.judging.quantized_copy import quantized
from eckart.lm.load import LanguageModel, load
from eckart.nn import Progress

GRADIENTS = 16  # sequences from which output gradients are taken
LABELS = ("model", "text")


def compress(
    model: PreTrainedModel | str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
    *,
    text: Source | Mapping[Source, float] = "pydoc",
    keep: float | None = None,
    ranks: Mapping[str, int] | None = None,
    method: str = "auto",
    sequences: int = 64,
    length: int = 512,
    held_out: int = 8,
    batch: int = 1,
    labels: Literal["model", "text"] = "model",
    evaluate: Mapping[str, Source] | None = None,
    context: int = 1024,
    tokens: int | Mapping[str, int] | None = None,
    curve: Sequence[float] = (),
    int8: bool = False,
    recover: How | None = None,
    recovery: Mapping[str, Any] | None = None,
    dry_run: bool = False,
    dtype: torch.dtype = torch.float32,
    work: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> CompressedLM:
    """Compress a language model on text.

    Args:
        model: What `load` takes, or a causal language model, which is compressed in place.
        tokenizer: Of a model that is given as such.
        text: What to calibrate on: what `read_text` takes, or several of those with their weights.
        keep: Stored bytes ÷ dense bytes of the selected matrices, above 0 and at most 1; None: 0.8, or as ranks say.
        ranks: Matrix name → rank, instead.
        method: A row of `compression.METHODS`.
        sequences: How many to calibrate on.
        length: Tokens in each.
        held_out: How many more to choose and stop by.
        batch: Sequences at a time.
        labels: Whose next tokens the output gradients are of: drawn from the "model" itself, or those of the "text".
        evaluate: What each text is called → what `read_text` takes; their perplexities are measured before and after.
            None of them is calibrated on.
        context: Tokens in a window of that.
        tokens: How many tokens of each text to use; see `lm.evaluate`.
        curve: More budgets, to show what each would lose; their perplexities too, where something is evaluated.
        int8: Evaluate plain int8 too (`lm.quantized`): what the bytes could buy instead. Takes a copy of the model.
        recover: "blocks" or "lora" refines the compressed layers by gradients on the calibration text (`lm.recover`);
            this takes a copy of the dense model.
        recovery: Options of that, such as {"steps": 100}.
        dry_run: Plan only; the model stays as it is, and nothing is evaluated.
        dtype: Of the weights of a model that is loaded.
        work: A folder where what calibration learned is kept, so that an interrupted run goes on.
        progress: Called as progress(done, total, label).
        options: What `compression.compress` takes besides: targets, exclude, allocation, floor, …

    Returns:
        CompressedLM: the model and what was measured; `save` writes it.

    Raises:
        ValueError: What `calibration_data`, `compression.compress`, `evaluate` or `recover` refuse.
        FileNotFoundError: There is no such model or text.

    Example:
        >>> from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
        >>> from eckart.lm import checkpoint_path
        >>> tokenizer = AutoTokenizer.from_pretrained(checkpoint_path("minilm"))
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
        >>> small = compress(model, tokenizer, keep=0.5, method="svd-llm", sequences=2, length=32, held_out=1)
        >>> small.summary()["matrices"], small.summary()["kept"] <= 0.5
        (7, True)
    """
    _check(labels, recover, recovery, dry_run)
    if int8 and (dry_run or not evaluate):
        raise ValueError("int8: it is evaluated beside the compressed model; give evaluate=, and no dry_run")
    began = time.perf_counter()
    given = _given(model, tokenizer, dtype, progress)
    data = calibration_data(
        given.tokenizer, text, sequences=sequences, length=length, held_out=held_out, batch=batch,
        avoid=_avoided(evaluate, tokens),
    )  # fmt: skip

    def measured(model: PreTrainedModel = given.model) -> Evaluation | None:
        if not evaluate or dry_run:
            return None
        return evaluated(
            model, given.tokenizer, evaluate, context=context, tokens=tokens, calibration=data, progress=progress
        )

    before, size = measured(), size_of(given.model)
    codes = measured(quantized(given.model)) if int8 else None
    if labels == "model":
        options = {"gradient_loss": SampledLoss()} | options
    options = {"gradient_batches": max(1, GRADIENTS // batch)} | options
    plan: Any = compression.compress(
        given.model, data.batches, keep=keep, ranks=ranks, method=method, held_out=data.held_out, work=work,
        progress=progress, dry_run=True, **options,
    )  # fmt: skip
    result = CompressedLM(given.model, given.tokenizer, given.name, plan, data, size, before=before, int8=codes)
    for each in curve:
        result.curve.append(_point(plan.at(keep=each), measured if evaluate and not dry_run else None))
    if not dry_run:
        dense = None if recover is None else deepcopy(given.model)
        result.done = plan.apply()
        if recover is not None:
            names = [name for row in plan.rows() if row["form"] != "dense" for name in row["matrices"]]
            result.recovery = recovered(
                given.model, recover, data, dense=dense, names=names, progress=progress, **(recovery or {})
            )
        result.after = measured()
    result.seconds = time.perf_counter() - began
    return result


def _check(labels: str, recover: str | None, recovery: Mapping[str, Any] | None, dry_run: bool) -> None:
    """Refuse what does not fit together before anything is loaded."""
    if labels not in LABELS:
        raise ValueError(f"labels: {labels!r}; give one of {', '.join(LABELS)}")
    if recover is not None and recover not in HOW:
        raise ValueError(f"recover: {recover!r}; give one of {', '.join(HOW)}, or None")
    if recover is not None and dry_run:
        raise ValueError(f"recover: {recover!r}, but dry_run compresses nothing that could be recovered; leave one out")
    if recovery and recover is None:
        raise ValueError(f"recovery: {', '.join(recovery)}, but nothing is recovered; give recover= too")


def _avoided(evaluate: Mapping[str, Source] | None, tokens: int | Mapping[str, int] | None) -> dict[Source, int | None]:
    """How many tokens of each source are evaluated; one may be so under several names."""
    if not evaluate:
        return {}
    counts, avoided = token_counts(evaluate, tokens), dict[Source, int | None]()
    for name, source in evaluate.items():
        known, count = avoided.get(source, 0), counts[name]
        avoided[source] = None if known is None or count is None else max(known, count)
    return avoided


def _given(
    model: PreTrainedModel | str | os.PathLike[str],
    tokenizer: Tokenizer | None,
    dtype: torch.dtype,
    progress: Progress | None,
) -> LanguageModel:
    """The model with its tokenizer and name."""
    if isinstance(model, str | os.PathLike):
        loaded = load(model, dtype=dtype, progress=progress)
        return loaded if tokenizer is None else loaded._replace(tokenizer=tokenizer)
    return LanguageModel(model, tokenizer, str(model.config.name_or_path or type(model).__name__))


def _point(plan: compression.Plan, measured: Callable[[], Evaluation | None] | None) -> dict[str, Any]:
    """What another budget would lose, and the perplexities that it would leave."""
    found: Evaluation | None = None
    if measured is not None:
        with plan.standing():
            found = measured()
    return {
        "keep": plan.keep,
        "kept": plan.kept,
        "error": plan.error,
        "perplexities": {} if found is None else found.perplexities,
    }
