"""The weights of a live model, or of a checkpoint on disk, as sources that are read one at a time."""

from functools import partial
from pathlib import Path

from torch import Tensor, nn

from eckart.nn import Patterns, Progress, matrices
from eckart.nn.files import Checkpoint, CheckpointMatrix, open_checkpoint

from .entry import Entry
from .spectrum import Source, entry_of, measure_all


def weight_sources(
    subject: nn.Module | str | Path,
    targets: Patterns = None,
    exclude: Patterns = None,
) -> list[Source]:
    """Each matrix of a model or a checkpoint, in order; a stack of experts gives one source per expert."""
    if isinstance(subject, nn.Module):
        return [
            Source(name, matrix.shape, W.detach, _tied(matrix.tied), flipped=matrix.kind == "conv1d")
            for matrix in matrices(subject, targets, exclude)
            for name, W in matrix.members()
        ]
    checkpoint = open_checkpoint(subject)
    return [
        Source(name, matrix.shape, partial(_stored, checkpoint, matrix, index))
        for matrix in checkpoint.matrices(targets, exclude)
        for name, index in matrix.members()
    ]


def measure_weights(
    subject: nn.Module | str | Path,
    *,
    mode: str,
    targets: Patterns = None,
    exclude: Patterns = None,
    progress: Progress | None = None,
) -> list[Entry]:
    """The spectrum of every weight matrix."""
    stored = not isinstance(subject, nn.Module)
    return measure_all(
        weight_sources(subject, targets, exclude),
        lambda source: entry_of(source.read(), name=source.name, of="weights", mode=mode, extra=source.extra),
        progress=progress,
        bounded=stored,
        # Several matrices of float64 work at a time, and what each worker's allocator keeps, would pass the bound.
        workers=1 if stored and mode == "full" else None,
    )


def _tied(names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {"tied": names} if names else {}


def _stored(checkpoint: Checkpoint, matrix: CheckpointMatrix, index: int | None) -> Tensor:
    return checkpoint.read(matrix.key, index).reshape(matrix.shape)
