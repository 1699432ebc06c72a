"""Rank rules: a number for all matrices, or a dict that names each matrix's rank and, with it, which are adapted."""

from collections.abc import Mapping

from eckart.nn import Matrix
from eckart.nn.patterns import closest


def fixed_ranks(found: list[Matrix], rank: int | Mapping[str, int], bounded: bool = True) -> dict[str, int]:
    """A rank for each matrix, checked (at most min(m, n) where bounded); a mapping names those that are adapted."""
    shapes = {name: matrix for matrix in found for name in matrix.tied}
    shapes |= {matrix.name: matrix for matrix in found}
    if isinstance(rank, Mapping):
        unknown = [name for name in rank if name not in shapes]
        if unknown:
            raise ValueError(f"rank: {unknown[0]!r} is not a matrix to adapt; closest: {closest(unknown[0], shapes)}")
        ranks = {shapes[name].name: r for name, r in rank.items() if r != 0}
    else:
        ranks = {matrix.name: rank for matrix in found}
    for name, r in ranks.items():
        m, n = shapes[name].shape
        if not isinstance(r, int) or isinstance(r, bool) or r < 1 or (bounded and r > min(m, n)):
            most = f"from 1 to {min(m, n)}" if bounded else "of at least 1"
            raise ValueError(f"rank: {r!r} for {name} ({m}, {n}); give a whole number {most}")
    if not ranks:
        raise ValueError("rank: every matrix has rank 0, so nothing would be adapted")
    return {matrix.name: ranks[matrix.name] for matrix in found if matrix.name in ranks}
