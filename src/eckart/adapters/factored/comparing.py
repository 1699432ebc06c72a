"""How far apart two adapters are, matrix by matrix and in total, from their factors alone.

    ‖Δ₁ − Δ₂‖_F,  ⟨Δ₁, Δ₂⟩,  cos = ⟨Δ₁, Δ₂⟩ / ‖Δ₁‖‖Δ₂‖,  φ(U₁, U₂) = ‖U₁ᵀU₂‖_F² / min(r₁, r₂), likewise of V

U and V are the left and right singular vectors of Δ: what is written to, and what is read. Cost: O((m+n)r²) a matrix.

Paper: φ is eq. 4 of LoRA 2106.09685.
"""

from typing import NamedTuple

from torch import Tensor

from eckart.adapters.factored.algebra import Pairs, factors, naming, union
from eckart.linalg import overlap, product_distance, product_inner, product_norm, product_svd

ROUNDING = 1e-6  # of the largest singular value: directions below it are none


class Compared(NamedTuple):
    """Two changes of one matrix, or of all."""

    distance: float  # ‖Δ₁ − Δ₂‖_F
    inner: float  # ⟨Δ₁, Δ₂⟩
    cosine: float  # ⟨Δ₁, Δ₂⟩ / ‖Δ₁‖‖Δ₂‖; 0 where one is zero
    first: float  # ‖Δ₁‖_F
    second: float  # ‖Δ₂‖_F
    left: float  # overlap of the column spaces, 0 to 1; 0 where one is zero
    right: float  # overlap of the row spaces


class Comparison(NamedTuple):
    """What `compare` gives."""

    matrices: dict[str, Compared]
    total: Compared  # of all matrices as one vector; overlaps are means over the matrices that both change


def compare(first: Pairs, second: Pairs, *, rank: int | None = None) -> Comparison:
    """How far apart two adapters are, and whether they use the same directions.

    Args:
        first: An adapter.
        second: Another, of the same model.
        rank: How many leading directions the overlaps compare, at most; None for all that are not zero.

    Returns:
        Comparison: for each matrix that either has, and in total.

    Raises:
        ValueError: Shapes that do not agree (the matrix is named), or a rank below 1.

    Example:
        >>> import torch
        >>> from eckart.nn.files import LoraPair
        >>> one = {"q": LoraPair(torch.eye(3)[:, :1], torch.eye(4)[:1], 3.0)}
        >>> other = {"q": LoraPair(torch.eye(3)[:, :1], torch.eye(4)[1:2], 4.0)}
        >>> total = compare(one, other).total
        >>> total.distance, total.cosine, total.left, total.right
        (5.0, 0.0, 1.0, 0.0)
    """
    if rank is not None and rank < 1:
        raise ValueError(f"rank: {rank}; give the number of leading directions to compare, at least 1")
    rows, both = {}, []
    for name in union(first, second):
        one, other = (factors(each[name]) if name in each else None for each in (first, second))
        if one is None or other is None:
            norm = float(product_norm(*(one or other)))  # type: ignore[misc]
            norms = (norm, 0.0) if other is None else (0.0, norm)
            rows[name] = Compared(norm, 0.0, 0.0, *norms, 0.0, 0.0)
            continue
        with naming(name):
            distance, inner = float(product_distance(one, other)), float(product_inner(one, other))
        left, right, known = _overlaps(one, other, rank)
        norms = (float(product_norm(*one)), float(product_norm(*other)))
        rows[name] = Compared(distance, inner, _cosine(inner, *norms), *norms, left, right)
        both += [rows[name]] if known else []
    return Comparison(rows, _total(list(rows.values()), both))


def _overlaps(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], rank: int | None) -> tuple[float, float, bool]:
    """Overlaps of the leading left and right directions, and whether both have any."""
    (U1, S1, V1), (U2, S2, V2) = product_svd(*one), product_svd(*other)
    i, j = (min(int((S.gt(ROUNDING * S[:1])).sum()), rank or len(S)) for S in (S1, S2))
    if not i or not j:
        return 0.0, 0.0, False
    return float(overlap(U1[:, :i], U2[:, :j])), float(overlap(V1[:i].T, V2[:j].T)), True


def _cosine(inner: float, first: float, second: float) -> float:
    return inner / (first * second) if first and second else 0.0


def _total(rows: list[Compared], both: list[Compared]) -> Compared:
    distance, first, second = (
        sum(getattr(row, k) ** 2 for row in rows) ** 0.5 for k in ("distance", "first", "second")
    )
    inner = sum(row.inner for row in rows)
    left, right = (sum(getattr(row, k) for row in both) / max(1, len(both)) for k in ("left", "right"))
    return Compared(distance, inner, _cosine(inner, first, second), first, second, left, right)
