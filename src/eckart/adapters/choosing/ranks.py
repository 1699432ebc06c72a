"""Rank rules: a number for all matrices, a dict that gives each matrix its rank and says which are adapted, "auto"."""

from collections.abc import Mapping

from eckart.adapters.methods import METHODS, Method
from eckart.adapters.shapes.two_factor import TwoFactor
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


def check_automatic(rank: object, budget: object, method: str, row: Method) -> bool:
    """Whether the ranks are to be chosen, once it is sure that they can be."""
    if rank != "auto":
        if isinstance(rank, str):
            raise ValueError(f'rank: {rank!r}; give a whole number, matrix name → rank, or "auto"')
        if budget is not None:
            raise ValueError(f'budget: {budget!r} is for rank="auto"; give that, or leave the budget out')
        return False
    if not issubclass(row.shape, TwoFactor) or row.trains:
        fitting = [name for name, each in METHODS.items() if issubclass(each.shape, TwoFactor) and not each.trains]
        raise ValueError(
            f'rank: "auto" counts r(m+n) parameters, both of B and of A, which {method} does not train; '
            f"methods that do: {', '.join(fitting)}"
        )
    return True
