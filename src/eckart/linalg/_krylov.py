"""The largest singular values and their vectors by block Lanczos on A = WᵀW with full orthogonalisation.

A block Q₀ of `count` random rows grows into an orthonormal basis K of span{Q₀, Q₀A, Q₀A², …}; the eigenvalues of
T = K A Kᵀ (Ritz values) rise to A's. As the block is as wide as the number of wanted values, repeated eigenvalues are
found however often they repeat. T costs nothing: its rows are the coefficients of the orthogonalisation.

Golub & Underwood 1977, "The block Lanczos method for computing eigenvalues".
Paper: vectors are rows, so that narrow blocks meet BLAS in its fast orientation; stopping looks at the values alone.
"""

import sys
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from eckart.linalg._check import seeded, working_dtype
from eckart.linalg._gram import gram, in_range, symmetrize, tall

FIRST = 4  # blocks before the first look at the values: earlier none has settled
VERY_TALL = 8  # times as long as wide: one Gram matrix is cheaper than passes over W
SETTLED = 1e-3  # of the eigenvalues σ²
ROWS = 256  # rows converted to float64 at a time
LOST = 0.05  # a row that loses all but this much of its length to the basis is orthogonalised again


class Ritz(NamedTuple):
    """What Lanczos found."""

    values: Tensor  # (count,) descending, float64
    T: Tensor  # (d, d) = K A Kᵀ, the lower triangle
    basis: Tensor  # K (d, n), orthonormal rows


def largest_values(
    W: Tensor,  # (m, n)
    start: Tensor,  # (count, min(m, n)) Gaussian
) -> tuple[Tensor, Tensor]:  # (count,), ()
    """The largest singular values, in float64, and ‖W‖²."""
    X, scale = in_range("W", W, working_dtype(W.dtype))
    squares = energy(X) * scale * scale
    ritz, exact = _search(tall(X), start)
    values = ritz.values.sqrt() if exact else torch.linalg.svdvals(_times(tall(X), ritz.basis.mT))
    return values[: len(start)] * scale, squares


def leading_triples(
    W: Tensor,  # (m, n)
    start: Tensor,  # (r, min(m, n)) Gaussian
) -> tuple[Tensor, Tensor, Tensor]:  # (m, r), (r,), (r, n)
    """The leading singular triples, by the SVD of X V for the leading Ritz vectors V, or for all the basis."""
    X, scale = in_range("W", W, working_dtype(W.dtype))
    X = tall(X)
    ritz, exact = _search(X, start)
    rank, K = len(start), ritz.basis
    if exact:
        K = torch.linalg.eigh(ritz.T).eigenvectors[:, -rank:].mT @ K
    U, S, turn = torch.linalg.svd(_times(X, K.mT), full_matrices=False)
    U, S, Vh = U[:, :rank], S[:rank] * scale, turn[:rank] @ K
    return (U, S, Vh) if W.shape[0] >= W.shape[1] else (Vh.mT, S, U.mT)


def _search(
    X: Tensor,  # (m, n), m ≥ n
    start: Tensor,  # (count, n)
) -> tuple[Ritz, bool]:
    """Lanczos in float32, in float64 where the values fall too steeply for that; and whether they are known even so.

    Where they are not, the singular values of X Kᵀ know them: those of T, their squares, have lost the digits.
    """
    for dtype in (torch.float32, torch.float64) if working_dtype(X.dtype) == torch.float32 else (torch.float64,):
        # λ is known to a few eps·λ₁, so the smallest wanted one is good to SETTLED above this.
        floor = 1e4 * torch.finfo(dtype).eps
        ritz = leading_eigenvalues(_square(X, dtype), start.to(dtype), tolerance=SETTLED, floor=floor)
        if exact := bool(ritz.values[-1] >= floor * ritz.values[0]):
            break
    return ritz, exact


def _square(X: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:  # (b, n) → (b, n)
    """Q ↦ Q XᵀX in `dtype`, with no float64 copy of a whole X (m, n) of another dtype."""
    m, n = X.shape
    if m >= VERY_TALL * n:
        A = symmetrize(gram(X, dtype))
        return lambda Q: Q @ A
    if dtype == torch.float32:
        X = X.to(dtype)
    if dtype == X.dtype:
        return lambda Q: (Q @ X.mT) @ X

    def apply(Q: Tensor) -> Tensor:
        Z = torch.zeros_like(Q)
        for rows in X.split(ROWS):
            exact = rows.to(dtype)
            Z.addmm_(Q @ exact.mT, exact)
        return Z

    return apply


def _times(X: Tensor, V: Tensor) -> Tensor:  # (m, n), (n, r) → (m, r)
    """X V in V's dtype, converting a few rows of X at a time."""
    return torch.cat([rows.to(V.dtype) @ V for rows in X.split(ROWS)])


def energy(
    W: Tensor,  # (m, n)
) -> Tensor:  # ()
    """‖W‖_F² in float64, row by row: one long float32 sum would lose digits."""
    X = W if W.stride(-1) == 1 else W.mT
    return torch.linalg.vector_norm(X, dim=-1, dtype=working_dtype(W.dtype)).double().square().sum()


def leading_eigenvalues(
    apply: Callable[[Tensor], Tensor],  # (b, n) → (b, n): rows times a symmetric positive semidefinite A
    start: Tensor,  # (count, n), Gaussian
    *,
    tolerance: float,
    floor: float,
) -> Ritz:
    """The `count` largest eigenvalues of A (n, n), each settled within `tolerance` of itself or of floor·λ₁.

    They are below A's, by an amount that is extrapolated from the last two changes. When the basis fills the whole
    space they are exact. Two host reads a block.
    """
    count, n = start.shape
    K, Q = start[:0], torch.linalg.qr(start.mT).Q.mT
    T = start[:0, :0]
    looks: list[list[float]] = []
    while True:
        K = torch.cat((K, Q))
        Z = apply(Q)
        C = Z @ K.mT
        T = _with_rows(T, C)
        d = len(K)
        if d == n or d >= FIRST * count:
            values = torch.linalg.eigvalsh(T).flip(0)[:count].clamp_min(0)
            looks = [*looks[-2:], values.tolist()]
            if d == n or _settled(looks, tolerance, floor):
                return Ritz(values.double(), T, K)
        Q = _next_block(Z, C, K)


def _with_rows(
    T: Tensor,  # (d, d)
    C: Tensor,  # (b, d + b)
) -> Tensor:  # (d + b, d + b)
    """T grown by the rows C; eigvalsh reads the lower triangle, so what lies above stays zero."""
    return torch.cat((torch.nn.functional.pad(T, (0, len(C))), C))


def _settled(looks: list[list[float]], tolerance: float, floor: float) -> bool:
    """Whether the largest values have settled, from three looks: what is still to come is a geometric series."""
    if len(looks) < 3:
        return False
    units = [max(value, floor * looks[-1][0], sys.float_info.min) for value in looks[-1]]
    before, last = (
        max(abs(b - a) / unit for a, b, unit in zip(old, new, units, strict=True)) for old, new in pairwise(looks)
    )
    return last < tolerance / 10 or (last < 10 * tolerance and last * last < tolerance * (before - last))


def _next_block(
    Z: Tensor,  # (b, n) = Q A for the last block Q
    C: Tensor,  # (b, d) = Z Kᵀ
    K: Tensor,  # (d, n)
) -> Tensor:  # (min(b, n − d), n)
    """Orthonormal rows that continue the basis K: Z less its part in K, random where nothing is left of it."""
    d, n = K.shape
    fresh = Z - C @ K
    fresh = fresh - (fresh @ K.mT) @ K  # once is not enough: K would drift from orthonormal, and T rise above A
    Q, R = torch.linalg.qr(fresh.mT)
    left = R.diagonal().abs()
    size = torch.linalg.vector_norm(Z) / len(Z) ** 0.5
    Q = Q.mT[: n - d]
    if bool(left.min() < LOST * size):
        noise = torch.randn(Q.shape, dtype=Q.dtype, device=Q.device, generator=seeded(Q.device, None, seed=d))
        gone = left[: n - d, None] <= 1e3 * torch.finfo(Q.dtype).eps * size
        Q = torch.where(gone, noise / n**0.5, Q)
        for _ in range(2):
            Q = torch.linalg.qr((Q - (Q @ K.mT) @ K).mT).Q.mT
    return Q
