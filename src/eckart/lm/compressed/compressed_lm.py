"""What `lm.compress` gives: the model, and all that was measured on the way, as plain data.

Paper: none.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

import eckart.lm.quantizer  # noqa: F401  (transformers learns to write compressed models)
from eckart.compression import Compressed, Plan
from eckart.compression.files.originals import is_compressed_model
from eckart.lm.calibration import Calibration
from eckart.lm.compressed.recovery import Recovery
from eckart.lm.judging.evaluation import Evaluation
from eckart.lm.judging.latency import COMPRESSED, DENSE, bench, dense_and
from eckart.lm.judging.quantized_copy import quantized
from eckart.lm.judging.speeds import Bench
from eckart.lm.pretrained import MARK, write_pretrained
from eckart.nn import Progress
from eckart.nn.files import atomic_directory, write_json
from eckart.nn.sizes import model_bytes

REPORT = "report.json"
INT8 = "int8"  # what plain int8 is called among the speeds


@dataclass(eq=False)
class CompressedLM:
    """A language model that was compressed, or is planned to be.

    Args:
        model: Compressed; the dense one, untouched, where it was only planned.
        tokenizer: Its tokenizer.
        name: What it was loaded from.
        plan: Sizes, what was learned, and `at` for other budgets (of a dense model).
        calibration: What it was calibrated on.
        dense_size: (parameters, bytes) of the dense model.
        done: What came of the plan; None where it was only planned.
        before: How the dense model predicts; None where nothing was to be evaluated.
        after: How the compressed one does; None likewise.
        int8: How plain int8 of the dense one does; None where that was not asked for.
        recovery: What was refined by gradients, and on what; None where nothing was.
        curve: Other budgets: {"keep", "kept", "error", "perplexities"}, the predicted error relative to all that was
            selected, in the method's metric.
        seconds: All of it.
        speeds: What `measure_speed` found.
    """

    model: PreTrainedModel = field(repr=False)
    tokenizer: Tokenizer | None = field(repr=False)
    name: str
    plan: Plan
    calibration: Calibration = field(repr=False)
    dense_size: tuple[int, int]
    done: Compressed | None = field(default=None, repr=False)
    before: Evaluation | None = field(default=None, repr=False)
    after: Evaluation | None = field(default=None, repr=False)
    int8: Evaluation | None = field(default=None, repr=False)
    recovery: Recovery | None = None
    curve: list[dict[str, Any]] = field(default_factory=list, repr=False)
    seconds: float = 0.0
    speeds: Bench | None = field(default=None, repr=False)

    @property
    def notes(self) -> list[str]:
        """What the user should know, each once."""
        found = [*self.calibration.notes, *self.plan.remarks]
        for each in (self.after or self.before, self.recovery):
            found += each.notes if each is not None else ()
        return list(dict.fromkeys(found))

    def rows(self) -> list[dict[str, Any]]:
        """One row for each matrix, or for matrices that are decomposed together (see `compression`)."""
        return (self.plan if self.done is None else self.done).rows()

    def report(self) -> str:
        """What was done, as text."""
        lines = [(self.plan if self.done is None else self.done).report()]
        lines += [
            f"{each['text']}: perplexity {each['dense']:.2f} → {each['compressed']:.2f} over {each['tokens']:,} tokens"
            for each in self._perplexities()
            if each["compressed"] is not None
        ]
        lines += [] if self.recovery is None else [str(self.recovery)]
        lines += [] if self.speeds is None else [str(self.speeds)]
        shown = self.plan.remarks
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes if note not in shown)])

    def measure_speed(self, *, int8: bool = False, progress: Progress | None = None, **options: Any) -> Bench:
        """Measure tokens per second beside the dense form, and keep that for the summary.

        Args:
            int8: Measure plain int8 of the dense form too.
            progress: Called as progress(done, total, label).
            options: As `bench` takes them.
        """
        models = dense_and(self.model) if is_compressed_model(self.model) else {DENSE: self.model}
        if int8:
            models[INT8] = quantized(models[DENSE])
        self.speeds = bench(models, progress=progress, **options)
        return self.speeds

    def summary(self) -> dict[str, Any]:
        """The totals as plain data; `parameters` is None where it was only planned."""
        rows = self.rows()
        planned = round(self.dense_size[1] * self.plan.kept_of_model)
        parameters, size = (None, planned) if self.done is None else size_of(self.model)
        return {
            "model": self.name,
            "method": self.plan.method,
            "allocation": self.plan.allocation,
            "candidates": dict(self.plan.losses),
            "keep": self.plan.keep,
            "kept": self.plan.bytes / self.plan.dense_bytes,
            "kept_of_model": size / self.dense_size[1],
            "matrices": sum(len(row["matrices"]) for row in rows),
            "dense_matrices": sum(len(row["matrices"]) for row in rows if row["form"] == "dense"),
            "parameters": parameters,
            "dense_parameters": self.dense_size[0],
            "bytes": size,
            "dense_bytes": self.dense_size[1],
            "calibration": self.calibration.rows(),
            "beside_codes": self.plan.beside_codes(),
            "perplexities": self._perplexities(),
            "speeds": self._speeds(),
            "recovery": None if self.recovery is None else str(self.recovery),
            "notes": self.notes,
            "left_out": dict(self.plan.left_out),
            "seconds": self.seconds,
        }

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        recovered = {} if self.recovery is None else {"recovered": self.recovery.to_json()}
        return self.summary() | recovered | {"rows": self.rows(), "curve": self.curve}

    def save(self, folder: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write the model, its tokenizer and report.json, the whole folder or nothing (see `lm.save`).

        Raises:
            FileExistsError: The folder is there and `force` is false.
            ValueError: The model was only planned.
        """
        if self.done is None:
            raise ValueError("model: it was only planned, so there is nothing to save; compress it without dry_run")
        with atomic_directory(folder, force=force, mark=MARK) as beside:
            write_pretrained(self.model, self.tokenizer, beside)
            write_json(beside / REPORT, self.to_json())

    def __str__(self) -> str:
        return str(self.plan if self.done is None else self.done)

    def _perplexities(self) -> list[dict[str, Any]]:
        dense: Mapping[str, float] = {} if self.before is None else self.before.perplexities
        codes: Mapping[str, float] = {} if self.int8 is None else self.int8.perplexities
        told = self.after or self.before
        return [
            {
                "text": each.text, "source": each.source, "tokens": each.tokens, "context": each.context,
                "domain": each.domain, "dense": dense.get(each.text),
                "compressed": None if self.after is None else each.perplexity, "int8": codes.get(each.text),
            }
            for each in (() if told is None else told.texts)
        ]  # fmt: skip

    def _speeds(self) -> list[dict[str, Any]]:
        if self.speeds is None:
            return []
        found = {(each.phase, each.model): each for each in self.speeds.speeds}
        return [
            {"phase": phase, "dense": found[phase, DENSE].per_second, "compressed": each.per_second,
             "ratio": each.ratio, "int8": found[phase, INT8].per_second if (phase, INT8) in found else None}
            for (phase, model), each in found.items()
            if model == COMPRESSED
        ]  # fmt: skip


def size_of(model: nn.Module) -> tuple[int, int]:
    """Parameters of a model, and the bytes of its parameters and buffers, each once.

    Example:
        >>> size_of(nn.BatchNorm1d(4))
        (8, 72)
    """
    return sum(p.numel() for p in model.parameters()), model_bytes(model)
