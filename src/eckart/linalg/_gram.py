"""The Gram matrix of a matrix's long side, accumulated over blocks of rows in bounded memory.

G = WᵀW of a tall W (m, n): little more than m n² flops, as only the lower triangle is computed. In float64 its
eigenvalues are σ² with an error of a few eps·σ₁², so σ keeps digits down to σ₁·√eps.
"""

import math

import torch
from torch import Tensor

from eckart.linalg._check import peak, working_dtype

BLOCK = 96  # columns in a block of the triangle, at least: narrower ones make slow products
ROWS = 1024  # rows converted at a time


def tall(W: Tensor) -> Tensor:
    """W or its transpose, a view with no more columns than rows."""
    return W if W.shape[-2] >= W.shape[-1] else W.mT


def in_range(name: str, W: Tensor, dtype: torch.dtype) -> tuple[Tensor, float]:
    """W and 1.0; where squares would leave the range of `dtype`, a copy W/scale and that scale, a power of two.

    The copy is in float32 (float64 for float64). Raises ValueError for non-finite entries. One pass and one host read.
    """
    largest = peak(name, W)
    edge = torch.finfo(dtype).tiny ** (1 / 3)
    if largest == 0 or edge < largest < 1 / edge:
        return W, 1.0
    exponent = math.frexp(largest)[1] - 1
    half = exponent // 2  # in two steps: 2**-exponent itself may overflow
    X = W.to(working_dtype(W.dtype), copy=True).mul_(2.0**-half).mul_(2.0 ** (half - exponent))
    return X, 2.0**exponent


def gram(
    W: Tensor,  # (m, n), m ≥ n
    dtype: torch.dtype,
) -> Tensor:  # (n, n)
    """The lower triangle of WᵀW in `dtype`; what lies above is not all filled in.

    Memory: n² + 1024 n numbers of `dtype`.
    """
    m, n = W.shape
    G = torch.zeros(n, n, dtype=dtype, device=W.device)
    ready = W.dtype == dtype
    rows = m if ready else min(m, ROWS)
    buffer = None if ready else torch.empty_like(W[:rows], dtype=dtype)
    for start in range(0, m, rows):
        chunk = W if buffer is None else buffer[: min(rows, m - start)].copy_(W[start : start + rows])
        add_gram(G[None], chunk[None])
    return G


def add_gram(
    G: Tensor,  # (s, n, n)
    rows: Tensor,  # (s, N, n), of the dtype of G
) -> None:
    """Add the lower triangle of rowsᵀ rows to G, in place and in blocks; what lies above is not all filled in.

    Cost: little more than s N n² flops, half of what the whole product takes; `symmetrize` copies the rest at the end.

    Args:
        G: (s, n, n), changed in place.
        rows: (s, N, n), of the dtype and device of G.

    Example:
        >>> G, rows = torch.zeros(1, 2, 2), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
        >>> add_gram(G, rows)
        >>> symmetrize(G)
        tensor([[[10., 14.],
                 [14., 20.]]])
    """
    n = rows.shape[-1]
    width = max(1, -(-n // max(1, min(6, n // BLOCK))))
    for left in range(0, n, width):
        right = min(left + width, n)
        G[:, left:right, :right].baddbmm_(rows[..., left:right].mT, rows[..., :right])


def triangle(
    W: Tensor,  # (m, n), m ≥ n
) -> Tensor:  # (n, n)
    """R of W = QR in float64, over blocks of n rows: 8/3 m n² flops, 5 n² numbers of memory."""
    m, n = W.shape
    stacked = torch.zeros(2 * n, n, dtype=torch.float64, device=W.device)  # R above, the next rows below
    for start in range(0, m, n):
        rows = W[start : start + n]
        stacked[n : n + len(rows)] = rows
        stacked[:n] = torch.linalg.qr(stacked[: n + len(rows)], mode="r").R
    return stacked[:n]


def symmetrize(
    G: Tensor,  # (..., n, n)
) -> Tensor:  # (..., n, n)
    """G itself, its lower triangle copied over the upper one.

    Args:
        G: Square, changed in place.

    Example:
        >>> symmetrize(torch.tensor([[1.0, 9.0], [2.0, 3.0]]))
        tensor([[1., 2.],
                [2., 3.]])
    """
    return G.tril_().add_(G.tril(-1).mT)
