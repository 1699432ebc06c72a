"""`train`: all of a language model on text with optimizer states of low rank, with transformers' Trainer."""

import json
import os
import warnings
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from eckart.lm.data import TrainingData
from eckart.lm.gradient_callback import PowerSGDCallback, require_several
from eckart.lm.load import without_bars
from eckart.lm.pretrained import MARK, write_pretrained
from eckart.lm.run_folder import RunFolder, first_process, processes
from eckart.lm.running import prepare
from eckart.lm.schedule import Schedule
from eckart.lm.trained import Trained, keep_start, ranks_of, spectra_since, taken
from eckart.lm.trainer import TextTrainer, peak_memory, same_use_cache, training_arguments
from eckart.nn import Patterns, Progress
from eckart.nn.files import atomic_directory, write_json
from eckart.optim import LowRankOptimizer, param_groups, step_in_backward, telemetry, watch
from eckart.optim.checking import require_known

CLIP = 1.0  # largest norm of all gradients together


def train(
    model: PreTrainedModel,
    tokenizer: Tokenizer | None,
    data: str | os.PathLike[str] | TrainingData,
    *,
    out: str | os.PathLike[str],
    method: str = "galore",
    rank: float | Mapping[str, float] | None = None,
    targets: Patterns = None,
    exclude: Patterns = None,
    held_out: str | os.PathLike[str] | float = 0.05,
    length: int = 512,
    steps: int | None = None,
    epochs: float = 1.0,
    lr: float | None = None,
    batch: int = 4,
    accumulate: int = 1,
    packed: bool = True,
    per_layer: bool = False,
    powersgd: int | None = None,
    seed: int = 0,
    save_every: int | None = None,
    resume: bool = False,
    force: bool = False,
    record: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Trained:
    """Train all of a language model with `LowRankOptimizer`; write it, checkpoints and a report to a folder.

    A cosine schedule after a warm-up of 5 % of the steps, gradients clipped at norm 1 (in per-layer mode at that of the
    step before, see `optim.per_layer`). Embeddings, head and vectors get AdamW. The data are read and checked before
    anything is trained. Several processes (torchrun) train as one under DDP.

    Args:
        model: A causal language model, from `load` or `from_scratch`; float32, or bfloat16, which is rounded
            stochastically.
        tokenizer: Its tokenizer.
        data: What `training_data` takes, or gave (then `held_out` and `length` are its own).
        out: Folder for model/, checkpoints/, report.json and start.safetensors, the weights before training.
        method: A row of `eckart.optim.METHODS`.
        rank: r, a share of each matrix's smaller dimension, or matrix name → either; None is the method's own.
        targets: Patterns of the matrices to train in a subspace.
        exclude: Patterns of those that get AdamW.
        held_out: Data to measure on, or the share of the documents that is kept for that.
        length: Tokens in a sequence, at most.
        steps: Optimizer steps; None: as `epochs` says.
        epochs: Passes over the data.
        lr: Largest learning rate; None is the method's own, which is for random weights.
        batch: Sequences at a time, in each process.
        accumulate: Batches for each step.
        packed: Lay several documents into one sequence, where the model keeps them apart (it is tried).
        per_layer: Step each parameter while gradients are computed, so that one layer's gradient is alive; one process.
        powersgd: Send gradients between processes at this rank (see `gradient_callback`).
        seed: Of the order of the data, of dropout and of random subspaces.
        save_every: Steps between checkpoints and evaluations; None: a fifth of the run.
        resume: Go on from the last checkpoint in `out`; one process in float32 gives the same bits as without a stop.
        force: Replace an earlier run in `out`.
        record: What else to write down of the run, and to require again where it is resumed: how the model was made.
        progress: Called as progress(done, total, label).
        options: Of the optimizer: gap, weight_decay, scale, betas, …

    Returns:
        Trained: perplexity before and after, memory, what was learned.

    Raises:
        ValueError: Malformed data (with the line), a method, rank or number that can't be, a model that predicts no
            next token or is in float16, a loss that is no number, or settings other than those of the resumed run.
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
        >>> rows = Path(tempfile.mkdtemp()) / "rows.jsonl"
        >>> _ = rows.write_text('{"text": "the rank of a product is at most the least rank of its factors"}')
        >>> done = train(model, tokenizer, rows, out=rows.parent / "run", rank=4, held_out=0.0, steps=3)
        >>> done.after < done.before, max(each.rank_99 for each in done.learned) <= 4
        (True, True)
        >>> sorted(file.name for file in (rows.parent / "run").iterdir())
        ['checkpoints', 'model', 'report.json', 'run.json', 'start.safetensors']
    """
    _check(model, per_layer, powersgd)
    row = require_known(method, options)
    plan = Schedule(
        steps=steps, epochs=epochs, lr=row.lr if lr is None else lr, batch=batch, accumulate=accumulate, seed=seed,
        save_every=save_every,
    )  # fmt: skip
    choice = {"method": method, "rank": rank, "targets": targets, "exclude": exclude, "per_layer": per_layer}
    choice |= {"powersgd": powersgd} | options | dict(record or {})
    r = row.rank if rank is None else rank
    optimizer, left_out = _optimizer(model, plan, method, r, targets, exclude, options)
    run = prepare(
        model, tokenizer, data, plan, out=out, held_out=held_out, length=length, packed=packed, resume=resume,
        force=force, record=json.loads(json.dumps(choice)),
    )  # fmt: skip
    run.notes.extend(left_out)
    with same_use_cache(model), without_bars():
        arguments = training_arguments(run.folder.checkpoints, plan, len(run.train), clip=0.0 if per_layer else CLIP)
        trainer = TextTrainer(
            model=model, args=arguments, train=run.train, held_out=run.measured, pad=run.pad, progress=progress,
            optimizers=(optimizer, None),
        )  # fmt: skip
        if powersgd is not None:
            PowerSGDCallback(powersgd, start=max(2, min(100, arguments.max_steps // 10))).attach(trainer)
        before = run.start(trainer, progress)
        if first_process() and not resume:
            keep_start(model, run.folder.before)
        watch(optimizer)
        inside = step_in_backward(optimizer, accumulate=accumulate, max_grad_norm=CLIP) if per_layer else None
        numbers = run.go(trainer, before, progress)
        if inside is not None:
            inside.remove()
    memory = taken(model, optimizer, peak_memory(arguments.device))
    done = Trained(
        method, ranks_of(optimizer), sum(p.numel() for p in model.parameters() if p.requires_grad),
        **numbers._asdict(),
        learned=spectra_since(optimizer, run.folder.before, progress) if first_process() else [],
        telemetry=telemetry(optimizer),
        step_seconds=median(trainer.watch.seconds or [0.0]),
        memory=memory,
        folder=str(run.folder.path),
        notes=run.notes,
    )  # fmt: skip
    if first_process():
        _write(run.folder, model, tokenizer, done)
    return done


def _check(model: PreTrainedModel, per_layer: bool, powersgd: int | None) -> None:
    if any(p.dtype == torch.float16 for p in model.parameters()):
        raise ValueError("model: float16 weights are too coarse to train; load it with dtype=torch.bfloat16 or float32")
    if per_layer and processes() > 1:
        raise ValueError("per_layer: its steps would come before the processes have added up gradients; use one")
    if powersgd is not None:
        require_several(processes())


def _optimizer(
    model: PreTrainedModel,
    plan: Schedule,
    method: str,
    rank: float | Mapping[str, float],
    targets: Patterns,
    exclude: Patterns,
    options: Mapping[str, Any],
) -> tuple[LowRankOptimizer, list[str]]:
    """The optimizer, and what it says it left to AdamW."""
    given = {"seed": plan.seed} | dict(options)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        groups = param_groups(model, rank, targets=targets, exclude=exclude, **given)
    return LowRankOptimizer(groups, plan.lr, method=method, **given), [str(each.message) for each in said]


def _write(folder: RunFolder, model: PreTrainedModel, tokenizer: Tokenizer | None, done: Trained) -> None:
    """The model and the report."""
    with atomic_directory(folder.model, force=True, mark=MARK) as beside, without_bars():
        write_pretrained(model, tokenizer, beside)
    write_json(folder.report, done.to_json(), force=True)
