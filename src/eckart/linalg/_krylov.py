"""The largest singular values by block Lanczos on A = WᵀW with full orthogonalisation.

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
from eckart.linalg._gram import gram, in_range, symmetric, tall

FIRST = 4  # blocks before the first look at the values: earlier none has settled
VERY_TALL = 8  # times as long as wide: one Gram matrix is cheaper than passes over W
SETTLED = 1e-3  # of the eigenvalues σ²
LOST = 0.05  # a row that loses all but this much of its length to the basis is orthogonalised again


class Ritz(NamedTuple):
    """What Lanczos found."""

    values: Tensor  # (count,) descending, float64
    basis: Tensor  # (d, n) orthonormal rows


def largest_values(
    W: Tensor,  # (m, n)
    start: Tensor,  # (count, min(m, n)) Gaussian
) -> tuple[Tensor, Tensor]:  # (count,), ()
    """The largest singular values by block Lanczos, in float64 where they fall too steeply for float32; and ‖W‖²."""
    X, scale = in_range("W", W, working_dtype(W.dtype))
    squares = energy(X) * scale**2
    X = tall(X)
    for dtype in (torch.float32, torch.float64) if working_dtype(X.dtype) == torch.float32 else (torch.float64,):
        # λ is known to a few eps·λ₁, so the smallest wanted one is good to SETTLED above this.
        floor = 1e4 * torch.finfo(dtype).eps
        eigenvalues, basis = _lanczos(X.to(dtype), start.to(dtype), floor)
        if bool(eigenvalues[-1] >= floor * eigenvalues[0]):
            return eigenvalues.sqrt() * scale, squares
    return torch.linalg.svdvals(basis @ X.to(basis.dtype).mT)[: len(start)] * scale, squares


def _lanczos(
    X: Tensor,  # (m, n), m ≥ n
    start: Tensor,  # (count, n)
    floor: float,
) -> Ritz:
    m, n = X.shape
    if m >= VERY_TALL * n:
        A = symmetric(gram(X, X.dtype))
        return leading_eigenvalues(lambda Q: Q @ A, start, tolerance=SETTLED, floor=floor)
    return leading_eigenvalues(lambda Q: (Q @ X.mT) @ X, start, tolerance=SETTLED, floor=floor)


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
                return Ritz(values.double(), K)
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
    Q, R = torch.linalg.qr((Z - C @ K).mT)
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
