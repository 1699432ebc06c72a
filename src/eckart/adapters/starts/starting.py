"""Make and start the adapters of one `adapt`: what matrices have in common once, then several matrices side by side.

Each matrix draws from a generator of its own, seeded in order: the bits do not depend on how many run at a time.
Paper: none.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from eckart.adapters.adapter import Adapter
from eckart.adapters.layers.magnitude import row_norm
from eckart.adapters.methods import Method
from eckart.adapters.settings import Settings
from eckart.adapters.starts.start import Look, LookAtAll, Prepared
from eckart.linalg import map_side_by_side
from eckart.nn import Matrix, Observation, Progress


class Asked(NamedTuple):
    """What the caller asked of each adapter beside its method."""

    dtype: torch.dtype | None  # of its parameters; None is float32 for a base of half precision, else the base's
    magnitude: bool
    bias: bool


def prepare(row: Method, look: LookAtAll) -> dict[str, Prepared]:
    """Rank and data of each matrix that is adapted, in the order of the matrices."""
    if row.prepare is None:
        return {matrix.name: Prepared(look.ranks[matrix.name]) for matrix in look.matrices}
    found = row.prepare(look)
    return {matrix.name: found[matrix.name] for matrix in look.matrices if found[matrix.name].rank > 0}


def with_prepared(settings: Settings, found: Mapping[str, Prepared], rank: int | None) -> Settings:
    """The settings with the ranks that were prepared; s stays α's of the one rank that the caller gave."""
    ranks = {name: each.rank for name, each in found.items()}
    evidence = {name: each.evidence for name, each in found.items() if each.evidence is not None}
    return replace(
        settings,
        ranks=ranks,
        scaled_as=rank if ranks != settings.ranks else settings.scaled_as,
        evidence=settings.evidence or evidence or None,
    )


def start_all(
    row: Method,
    settings: Settings,
    matrices: list[Matrix],
    seen: Mapping[str, Observation],
    found: Mapping[str, Prepared],
    options: Mapping[str, object],
    generator: torch.Generator | None,
    asked: Asked,
    progress: Progress | None,
) -> dict[str, Adapter]:
    """Matrix name → its adapter, started."""
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    looks = [
        Look(matrix, seen.get(matrix.name), _own(generator), options, found[matrix.name].given) for matrix in matrices
    ]
    workers = None if all(_on_cpu(matrix) for matrix in matrices) else 1
    made = map_side_by_side(lambda look: _start(row, settings, look, asked), looks, workers=workers)
    started = {}
    for done, (look, adapter) in enumerate(zip(looks, made, strict=True), 1):
        started[look.matrix.name] = adapter
        if progress is not None:
            progress(done, len(looks), "starting adapters")
    return started


def _own(generator: torch.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))


def _on_cpu(matrix: Matrix) -> bool:
    return all(parameter.device.type == "cpu" for parameter in matrix.module.parameters(recurse=False))


def _start(row: Method, settings: Settings, look: Look, asked: Asked) -> Adapter:
    matrix = look.matrix
    W = look.weight()
    dtype = asked.dtype or torch.promote_types(W.dtype, torch.float32)
    rank = settings.ranks[matrix.name]
    adapter = row.shape(matrix, rank, settings.scale(rank), settings, dtype, W.device)
    with torch.no_grad():
        row.start(adapter, look)
    if asked.magnitude:
        adapter.magnitude = nn.Parameter(row_norm(adapter, W).to(dtype))  # c = 1 also where a start moves the model
    if asked.bias:
        adapter.bias = nn.Parameter(torch.zeros(matrix.stack * matrix.shape[0], dtype=dtype, device=W.device))
    return adapter
