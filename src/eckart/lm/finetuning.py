"""`finetune`: train the adapters of a language model on text, pairs or conversations, with transformers' Trainer."""

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

import eckart.adapters as adapters
from eckart.adapters.adapting import summary
from eckart.lm.adapter_callback import AdapterCallback, acting
from eckart.lm.data import TrainingData, training_data
from eckart.lm.finetuned import Finetuned, spectra
from eckart.lm.packing import Example, keeps_apart
from eckart.lm.plan import Plan
from eckart.lm.run_folder import RunFolder, first_process, processes
from eckart.lm.training import (
    AdapterTrainer,
    Loss,
    adapter_trainer,
    peak_memory,
    same_use_cache,
)
from eckart.nn import Progress
from eckart.nn.files import write_json


def finetune(
    model: PreTrainedModel,
    tokenizer: Tokenizer | None,
    data: str | os.PathLike[str] | TrainingData,
    *,
    out: str | os.PathLike[str],
    held_out: str | os.PathLike[str] | float = 0.05,
    length: int = 512,
    steps: int | None = None,
    epochs: float = 1.0,
    lr: float = 2e-4,
    plus: float = 1.0,
    batch: int = 4,
    accumulate: int = 1,
    packed: bool = True,
    seed: int = 0,
    save_every: int | None = None,
    final_rank: float | None = None,
    restart_every: int | None = None,
    resume: bool = False,
    force: bool = False,
    record: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Finetuned:
    """Train a language model's adapters, and write them, checkpoints and a report to a folder.

    AdamW with a cosine schedule after a warm-up of 5 % of the steps, gradients clipped at norm 1. The base weights do
    not move. The data are read and checked before anything is trained. The method's rule of ranks is followed: AdaLoRA
    prunes triplets (and frees them at the end, where one process trains), ReLoRA restarts.

    Args:
        model: A causal language model that `eckart.adapt` has adapted; with `resume` it may be bare, and gets the
            adapter of the last checkpoint.
        tokenizer: Its tokenizer.
        data: What `training_data` takes, or gave (then `held_out` and `length` are its own).
        out: Folder for adapter/, checkpoints/ and report.json.
        held_out: Data to measure on, or the share of the documents that is kept for that.
        length: Tokens in a sequence, at most.
        steps: Optimizer steps; None: as `epochs` says.
        epochs: Passes over the data.
        lr: Largest learning rate.
        plus: λ of LoRA+: the rate of B ÷ lr.
        batch: Sequences at a time, in each process.
        accumulate: Batches for each step.
        packed: Lay several documents into one sequence, where the model keeps them apart (it is tried).
        seed: Of the order of the data and of dropout.
        save_every: Steps between checkpoints and evaluations; None: a fifth of the run.
        final_rank: For AdaLoRA: the average rank at the end; None: two thirds of that at the start.
        restart_every: For ReLoRA: steps from one restart to the next; None: a quarter of the run.
        resume: Go on from the last checkpoint in `out`; one process in float32 gives the same bits as without a stop.
        force: Replace an earlier run in `out`.
        record: What else to write down of the run, and to require again where it is resumed: how the model was made.
        progress: Called as progress(done, total, label).

    Returns:
        Finetuned: perplexity before and after, what was learned, time and memory.

    Raises:
        ValueError: Malformed data (with the line), no adapters, a number out of range, a model that predicts no next
            token, a loss that is no number, or settings other than those of the run that is resumed.
        FileExistsError: `out` holds something, and neither `resume` nor `force` was given.
        FileNotFoundError: No data, or no checkpoint to resume from.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
        >>> from eckart.lm import checkpoint_path
        >>> tokenizer = AutoTokenizer.from_pretrained(checkpoint_path("minilm"))
        >>> sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
        >>> _ = adapters.adapt(model, rank=2)
        >>> rows = Path(tempfile.mkdtemp()) / "rows.jsonl"
        >>> _ = rows.write_text('{"text": "the rank of a product is at most the least rank of its factors"}')
        >>> done = finetune(model, tokenizer, rows, out=rows.parent / "run", held_out=0.0, steps=3)
        >>> done.steps, done.after < done.before, sorted(file.name for file in (rows.parent / "run").iterdir())
        (3, True, ['adapter', 'checkpoints', 'report.json', 'run.json'])
    """
    plan = Plan(steps, epochs, lr, plus, batch, accumulate, seed, save_every, final_rank, restart_every)
    folder = RunFolder(out)
    if first_process():
        folder.require_writable(resume=resume, force=force)
    if not isinstance(data, TrainingData):
        data = training_data(tokenizer, data, held_out=held_out, length=length)
    _check_length(model, data.length)
    if not resume and not adapters.names(model):
        raise ValueError("model: it has no adapter to train; call eckart.adapt(model, …) first")
    notes = list(data.notes)
    packed = _packed(model, packed, notes)
    train, measured = data.sequences(packed=packed), data.sequences(packed=packed, held_out=True)
    if not measured:
        notes.append("nothing was held out, so the perplexity is that of the training data themselves")
    started = plan.to_json() | {"packed": packed, "data": _digest(train), "processes": processes()}
    started |= record or {}
    known = folder.require_same(started) if resume else {}
    if not adapters.names(model):
        adapters.load(folder.last_checkpoint(), into=model)
    name = acting(model, None)
    with same_use_cache(model):
        trainer = adapter_trainer(model, name, train, measured or train, data.pad, folder.checkpoints, plan, progress)
        AdapterCallback(name).attach(trainer)
        before = Loss(**known["before"]) if resume else trainer.measure(progress)
        if first_process() and not resume:
            folder.start(started | {"before": before._asdict()})
        began = time.perf_counter()
        trainer.train(resume_from_checkpoint=str(folder.last_checkpoint()) if resume else None)
        seconds = time.perf_counter() - began
        after = _last(trainer) or trainer.measure(progress)
    adaptation = summary(model, name)
    if adaptation.settings.method == "adalora" and trainer.args.world_size > 1:
        notes.append("the pruned triplets are still there, as zeros: several processes trained, which fixes the shapes")
    done = Finetuned(
        adaptation,
        trainer.state.global_step,
        before.perplexity(),
        after.perplexity(),
        f"{after.tokens:,} {'held-out' if measured else 'training'} tokens",
        spectra(model, name),
        _history(trainer, "loss"),
        [(step, math.exp(loss)) for step, loss in _history(trainer, "eval_loss")],
        seconds,
        peak_memory(trainer.args.device),
        str(folder.path),
        notes,
    )
    if first_process():
        adapters.save(model, folder.adapter, name, force=True)
        write_json(folder.report, done.to_json(), force=True)
    return done


def _last(trainer: AdapterTrainer) -> Loss | None:
    """The evaluation after the last step, if there was one."""
    return trainer.measured.get(trainer.state.global_step)


def _history(trainer: AdapterTrainer, key: str) -> list[tuple[int, float]]:
    return [(int(entry["step"]), entry[key]) for entry in trainer.state.log_history if key in entry]


def _packed(model: PreTrainedModel, packed: bool, notes: list[str]) -> bool:
    words: Any = model.get_input_embeddings()
    if packed and not keeps_apart(model, words.weight.shape[0]):
        notes.append(f"not packed: {type(model).__name__} lets documents in one sequence see each other")
        return False
    return packed


def _check_length(model: PreTrainedModel, length: int) -> None:
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit and length > limit:
        raise ValueError(f"length: {length} tokens, but the model takes at most {limit}; give fewer")


def _digest(sequences: Sequence[Example]) -> str:
    """What tells the training data from others."""
    return hashlib.sha256(json.dumps(sequences).encode()).hexdigest()[:16]
