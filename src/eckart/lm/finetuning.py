"""`finetune`: train the adapters of a language model on text, pairs or conversations, with transformers' Trainer."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

import eckart.adapters as adapters
from eckart.adapters.adapting import summary
from eckart.adapters.optimizers import param_groups
from eckart.lm.adapter_callback import AdapterCallback, acting
from eckart.lm.data import TrainingData
from eckart.lm.finetuned import Finetuned, spectra
from eckart.lm.restart_callback import Restarts
from eckart.lm.run_folder import first_process
from eckart.lm.running import Run, prepare
from eckart.lm.schedule import AdapterSchedule, rank_rule
from eckart.lm.trainer import TextTrainer, peak_memory, same_use_cache, training_arguments
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
    plan = AdapterSchedule(
        steps=steps, epochs=epochs, lr=lr, batch=batch, accumulate=accumulate, seed=seed, save_every=save_every,
        plus=plus, final_rank=final_rank, restart_every=restart_every,
    )  # fmt: skip
    if not resume and not adapters.names(model):
        raise ValueError("model: it has no adapter to train; call eckart.adapt(model, …) first")
    run = prepare(
        model, tokenizer, data, plan, out=out, held_out=held_out, length=length, packed=packed, resume=resume,
        force=force, record=record or {},
    )  # fmt: skip
    if not adapters.names(model):
        adapters.load(run.folder.last_checkpoint(), into=model)
    name = acting(model, None)
    with same_use_cache(model):
        trainer = _trainer(model, name, run, plan, progress)
        AdapterCallback(name).attach(trainer)
        numbers = run.go(trainer, run.start(trainer, progress), progress)
    adaptation = summary(model, name)
    if adaptation.settings.method == "adalora" and trainer.args.world_size > 1:
        run.notes.append(
            "the pruned triplets are still there, as zeros: several processes trained, which fixes the shapes"
        )
    done = Finetuned(
        adaptation,
        **numbers._asdict(),
        learned=spectra(model, name),
        memory=peak_memory(trainer.args.device),
        folder=str(run.folder.path),
        notes=run.notes,
    )
    if first_process():
        adapters.save(model, run.folder.adapter, name, force=True)
        write_json(run.folder.report, done.to_json(), force=True)
    return done


def _trainer(
    model: PreTrainedModel, name: str, run: Run, plan: AdapterSchedule, progress: Progress | None
) -> TextTrainer:
    """A Trainer that trains an adapter by the plan."""
    arguments = training_arguments(run.folder.checkpoints, plan, len(run.train))
    optimizer = torch.optim.AdamW(param_groups(model, plan.lr, plus=plan.plus))
    total, warmup = arguments.max_steps, int(arguments.warmup_steps)
    rule = rank_rule(model, name, plan, total)
    rate = rule.rate(optimizer, steps=total, warmup=warmup) if isinstance(rule, Restarts) else None
    return TextTrainer(
        model=model, args=arguments, train=run.train, held_out=run.measured, pad=run.pad, progress=progress,
        optimizers=(optimizer, rate), callbacks=[rule] if rule else [],
    )  # fmt: skip
