"""The largest eigenvalues of a symmetric operator by block Lanczos with full orthogonalisation.

A block Q₀ of `count` random rows grows into an orthonormal basis K of span{Q₀, Q₀A, Q₀A², …}; the eigenvalues of
T = K A Kᵀ (Ritz values) rise to A's. As the block is as wide as the number of wanted values, repeated eigenvalues are
found however often they repeat. T costs nothing: its rows are the coefficients of the orthogonalisation.

Golub & Underwood 1977, "The block Lanczos method for computing eigenvalues".
Paper: vectors are rows, so that narrow blocks meet BLAS in its fast orientation; stopping looks at the values alone.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from eckart.linalg._check import seeded

FIRST = 4  # blocks before the first look at the values: earlier none has settled
LOST = 0.05  # a row that loses all but this much of its length to the basis is orthogonalised again


class Ritz(NamedTuple):
    """What Lanczos found."""

    values: Tensor  # (count,) descending, float64
    basis: Tensor  # (d, n) orthonormal rows


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
    T = torch.empty(0, 0, dtype=torch.float64, device=start.device)
    looks: list[Tensor] = []
    while True:
        K = torch.cat((K, Q))
        Z = apply(Q)
        C = Z @ K.mT
        T = _with_rows(T, C.double())
        d = len(K)
        if d == n or d >= FIRST * count:
            looks = [*looks[-2:], torch.linalg.eigvalsh(T).flip(0)[:count].clamp_min(0)]
            if d == n or _settled(looks, tolerance, floor):
                return Ritz(looks[-1], K)
        Q = _next_block(Z, C, K)


def _with_rows(
    T: Tensor,  # (d, d)
    C: Tensor,  # (b, d + b)
) -> Tensor:  # (d + b, d + b)
    """T grown by the rows C; eigvalsh reads the lower triangle, so what lies above stays zero."""
    return torch.cat((torch.nn.functional.pad(T, (0, len(C))), C))


def _settled(looks: list[Tensor], tolerance: float, floor: float) -> bool:
    """Whether the largest values have settled, from three looks: what is still to come is a geometric series."""
    if len(looks) < 3:
        return False
    values = looks[-1]
    unit = torch.maximum(values, floor * values[0]).clamp_min(torch.finfo(values.dtype).tiny)
    before, last = (((new - old) / unit).abs().max() for old, new in pairwise(looks))
    ratio = last / before
    return bool((last < tolerance / 10) | ((last < 10 * tolerance) & (last * ratio < tolerance * (1 - ratio))))


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
