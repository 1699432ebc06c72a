"""A Trainer for text: exact evaluation in tokens, progress, and a stop where the loss is no number."""

import math
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import IntervalStrategy

from eckart.lm.packing import UNCOUNTED, Example, collate
from eckart.lm.schedule import Schedule
from eckart.nn import Progress
from eckart.nn.modes import evaluating


class Loss(NamedTuple):
    """Mean negative log-likelihood in nats, and of how many tokens."""

    nats: float
    tokens: int

    def perplexity(self) -> float:
        """exp of it."""
        return math.exp(self.nats) if self.nats < 700 else math.inf


@torch.no_grad()
def mean_loss(
    model: nn.Module, sequences: Sequence[Example], pad: int, batch: int, progress: Progress | None = None
) -> Loss:
    """How well a model predicts what counts, over all tokens alike.

    Args:
        model: A causal language model.
        sequences: Examples with labels.
        pad: The token to pad with.
        batch: Sequences at a time.
        progress: Called as progress(done, total, label).

    Raises:
        ValueError: The model gives no loss.
    """
    total, tokens, stack = 0.0, 0, collate(pad)
    device = next(model.parameters()).device
    with evaluating(model):
        for start in range(0, len(sequences), batch):
            made = stack(sequences[start : start + batch])
            inputs = {key: value.to(device) if hasattr(value, "to") else value for key, value in made.items()}
            loss = getattr(model(**inputs), "loss", None)
            if loss is None:
                raise ValueError(f"model: {type(model).__name__} predicts no next token; give a causal language model")
            count = int((made["labels"][:, 1:] != UNCOUNTED).sum())
            total, tokens = total + loss.double().item() * count, tokens + count
            if progress is not None:
                progress(min(start + batch, len(sequences)), len(sequences), "measuring")
    return Loss(total / tokens, tokens)


class TextTrainer(Trainer):
    """A Trainer that evaluates by `mean_loss`, so that its numbers during training are those of the report."""

    def __init__(
        self, *, train: Sequence[Example], held_out: Sequence[Example], pad: int, progress: Progress | None,
        callbacks: Sequence[TrainerCallback] = (), **options: Any,
    ) -> None:  # fmt: skip
        self.watch = Watch(progress)
        super().__init__(
            train_dataset=list(train), eval_dataset=list(held_out), data_collator=collate(pad),
            callbacks=[self.watch, *callbacks], **options,
        )  # fmt: skip
        self.remove_callback(PrinterCallback)  # it writes to stdout
        self.held_out, self.pad = held_out, pad
        self.measured: dict[int, Loss] = {}  # step → loss

    def measure(self, progress: Progress | None = None) -> Loss:
        """The loss on what was held out."""
        model: Any = self.model
        return mean_loss(model, self.held_out, self.pad, self.args.per_device_eval_batch_size, progress)

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """The loss on what was held out, in nats for each token."""
        loss = self.measured[self.state.global_step] = self.measure()
        metrics = {"eval_loss": loss.nats}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def history(self, key: str) -> list[tuple[int, float]]:
        """[step, number] of what was logged under a name."""
        return [(int(entry["step"]), entry[key]) for entry in self.state.log_history if key in entry]


def training_arguments(folder: Path, plan: Schedule, sequences: int, *, clip: float = 1.0) -> TrainingArguments:
    """A plan as a Trainer takes it, with checkpoints in a folder.

    Args:
        folder: For the checkpoints.
        plan: How long, how fast, in which portions.
        sequences: How many there are to learn from.
        clip: Largest norm of all gradients together; 0 leaves them as they are.
    """
    arguments = TrainingArguments(
        str(folder),
        max_steps=-1,
        per_device_train_batch_size=plan.batch,
        per_device_eval_batch_size=plan.batch,
        gradient_accumulation_steps=plan.accumulate,
        learning_rate=plan.lr,
        lr_scheduler_type="cosine",
        max_grad_norm=clip,
        seed=plan.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_total_limit=2,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=False,
        use_cpu=not torch.accelerator.is_available(),  # else torchrun's processes would not know of each other there
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # a process has one device; torchrun gives each GPU a process
    total = plan.total(sequences, arguments.world_size)
    every = plan.save_every or math.ceil(total / 5)
    arguments.max_steps, arguments.warmup_steps = total, int(0.05 * total)
    arguments.save_steps = arguments.eval_steps = every
    arguments.eval_strategy = arguments.save_strategy = IntervalStrategy.STEPS
    return arguments


@contextmanager
def same_use_cache(model: PreTrainedModel) -> Iterator[None]:
    """A model's `use_cache`, which a Trainer turns off for good, is at the end of the block what it was before."""
    before = getattr(model.config, "use_cache", None)
    try:
        yield
    finally:
        if before is not None:
            model.config.use_cache = before


class Watch(TrainerCallback):
    """Tells the progress, times the steps, and stops a run whose loss is no number."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.seconds: list[float] = []  # of each step: batches, gradients, optimizer; not evaluations and checkpoints
        self._began = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Before the first batch of a step."""
        self._began = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """After the optimizer's step."""
        self.seconds.append(time.perf_counter() - self._began)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """At each step."""
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss} at step {state.global_step}; lower lr ({args.learning_rate:g}), or go on from an "
                "earlier checkpoint"
            )
        if self.progress is not None:
            self.progress(state.global_step, state.max_steps, f"training, loss {loss:.3f}")


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak: on the GPU, or of the process where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
