"""The weights of a live model, or of a checkpoint on disk, as sources that are read one at a time."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from eckart.nn import Matrix, matrices
from eckart.nn.files import Checkpoint, CheckpointMatrix, open_checkpoint

from .entry import Entry
from .spectrum import Progress, Source, entry_of, measure_all

Patterns = str | Sequence[str] | None


def weight_sources(
    subject: nn.Module | str | Path,
    targets: Patterns = None,
    exclude: Patterns = None,
) -> list[Source]:
    """Each matrix of a model or a checkpoint, in order; a stack of experts gives one source per expert."""
    if isinstance(subject, nn.Module):
        return [
            Source(name, matrix.shape, partial(_live, matrix, index), {"tied": matrix.tied} if matrix.tied else {})
            for matrix in matrices(subject, targets, exclude)
            for name, index in members(matrix.name, matrix.stack)
        ]
    checkpoint = open_checkpoint(subject)
    return [
        Source(name, matrix.shape, partial(_stored, checkpoint, matrix, index), {})
        for matrix in checkpoint.matrices(targets, exclude)
        for name, index in members(matrix.name, matrix.stack)
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
    return measure_all(
        weight_sources(subject, targets, exclude),
        lambda source: entry_of(source.read(), name=source.name, of="weights", mode=mode, extra=source.extra),
        progress=progress,
        bounded=not isinstance(subject, nn.Module),
    )


def members(name: str, stack: int) -> list[tuple[str, int | None]]:
    """The name and index of every matrix of a stack; a single matrix keeps its name and has no index."""
    return [(name, None)] if stack == 1 else [(f"{name}[{e}]", e) for e in range(stack)]


def _live(matrix: Matrix, index: int | None) -> Tensor:
    W = matrix.weight().detach()
    return W if index is None else W[index]


def _stored(checkpoint: Checkpoint, matrix: CheckpointMatrix, index: int | None) -> Tensor:
    return checkpoint.read(matrix.key, index).reshape(matrix.shape)
