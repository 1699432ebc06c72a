"""What every training run does around its steps: check and prepare before them, measure before and after, go on.

Paper: none.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from eckart.lm.data import TrainingData, training_data
from eckart.lm.packing import Example, keeps_apart
from eckart.lm.run_folder import RunFolder, first_process, processes
from eckart.lm.schedule import Schedule
from eckart.lm.trainer import Loss, TextTrainer
from eckart.nn import Progress


class Numbers(NamedTuple):
    """What a run measured."""

    steps: int
    before: float  # perplexity
    after: float
    measured_on: str
    losses: list[tuple[int, float]]
    evaluations: list[tuple[int, float]]
    seconds: float


@dataclass(frozen=True)
class Run:
    """A run that is ready to go: sequences, folder, and what it was or is started with.

    Args:
        folder: Where it writes.
        train: Sequences to learn from.
        held_out: Sequences to measure on; empty: on those of `train`.
        pad: The token to pad with.
        notes: What was cut, left out or fell back, in sentences.
        settings: What must be the same where it goes on.
        known: What it was started with, where it goes on.
    """

    folder: RunFolder
    train: list[Example]
    held_out: list[Example]
    pad: int
    notes: list[str]
    settings: dict[str, Any]
    known: dict[str, Any] | None

    @property
    def measured(self) -> list[Example]:
        """What the loss is measured on."""
        return self.held_out or self.train

    def start(self, trainer: TextTrainer, progress: Progress | None) -> Loss:
        """Measure, and write down what the run is started with; of a run that goes on this is already known."""
        if self.known is not None:
            return Loss(**self.known["before"])
        before = trainer.measure(progress)
        if first_process():
            self.folder.start(self.settings | {"before": before._asdict()})
        return before

    def go(self, trainer: TextTrainer, before: Loss, progress: Progress | None) -> Numbers:
        """Train, from the last checkpoint where the run goes on, and measure again."""
        began = time.perf_counter()
        trainer.train(resume_from_checkpoint=None if self.known is None else str(self.folder.last_checkpoint()))
        seconds = time.perf_counter() - began
        after = trainer.measured.get(trainer.state.global_step) or trainer.measure(progress)
        return Numbers(
            trainer.state.global_step,
            before.perplexity(),
            after.perplexity(),
            f"{after.tokens:,} {'held-out' if self.held_out else 'training'} tokens",
            trainer.history("loss"),
            [(step, Loss(loss, 1).perplexity()) for step, loss in trainer.history("eval_loss")],
            seconds,
        )


def prepare(
    model: PreTrainedModel,
    tokenizer: Tokenizer | None,
    data: str | os.PathLike[str] | TrainingData,
    plan: Schedule,
    *,
    out: str | os.PathLike[str],
    held_out: str | os.PathLike[str] | float,
    length: int,
    packed: bool,
    resume: bool,
    force: bool,
    record: Mapping[str, Any],
) -> Run:
    """Read and check all that a run needs, and write nothing.

    Raises:
        ValueError: Malformed data, a length beyond the model's, or settings other than those of the run that goes on.
        FileExistsError: `out` holds something, and neither `resume` nor `force` was given.
        FileNotFoundError: No data, or no checkpoint to resume from.
    """
    folder = RunFolder(out)
    if first_process():
        folder.require_writable(resume=resume, force=force)
    if not isinstance(data, TrainingData):
        data = training_data(tokenizer, data, held_out=held_out, length=length)
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit and data.length > limit:
        raise ValueError(f"length: {data.length} tokens, but the model takes at most {limit}; give fewer")
    notes = list(data.notes)
    words: Any = model.get_input_embeddings()
    if packed and not keeps_apart(model, words.weight.shape[0]):
        notes.append(f"not packed: {type(model).__name__} lets documents in one sequence see each other")
        packed = False
    train, measured = data.sequences(packed=packed), data.sequences(packed=packed, held_out=True)
    if not measured:
        notes.append("nothing was held out, so the perplexity is that of the training data themselves")
    settings = plan.to_json() | {"packed": packed, "data": _digest(train), "processes": processes()} | dict(record)
    known = folder.require_same(settings) if resume else None
    return Run(folder, train, measured, data.pad, notes, settings, known)


def _digest(sequences: Sequence[Example]) -> str:
    """What tells the training data from others."""
    return hashlib.sha256(json.dumps(sequences).encode()).hexdigest()[:16]
