"""Singular values and truncated SVDs: all of them exactly, or the largest ones fast.

- All values: the float64 Gram matrix of the short side, G = WᵀW, gives σ² = λ(G) at the price of one product and one
  symmetric eigenproblem. Its rounding, about eps·‖G‖_F, hides small σ; where the smallest λ is not clear of that,
  LAPACK's SVD in float64 answers instead. (A float32 Gram matrix is wrong by hundreds of per cent at the small end.)
- The largest values: block Lanczos (`_krylov`), a handful of passes over W, and ‖W‖_F² for the energy of the rest.
- Truncated SVD: LAPACK, or the right singular vectors V of the Gram matrix, or of block Lanczos, and the SVD of the
  narrow W V.

Shapes: W (..., m, n), p = min(m, n). Cost: m n p + 4/3 p³ flops (all), 4 m n d with d ≈ 150 (16 largest).
Nothing here builds an autograd graph. Paper: the checks, and the choice between the ways, are ours.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from eckart.linalg._check import require_count, require_finite, require_matrix, require_rank, seeded, working_dtype
from eckart.linalg._gram import gram, in_range, tall, triangle
from eckart.linalg._krylov import energy, largest_values, leading_triples
from eckart.linalg.parallel import map_side_by_side

RELATIVE_ERROR = 5e-7  # of each singular value, allowed to the Gram way
SMALL = 256  # with fewer rows or columns than this all the values cost no more than the largest


@torch.no_grad()
def singular_values(
    W: Tensor,  # (..., m, n)
) -> Tensor:  # (..., min(m, n))
    """All singular values, each within 1e-6 of itself against a float64 SVD, several times faster.

    Values below the resolution of float64, σ₁·max(m, n)·2e-16, are as a float64 SVD gives them. A batch on the CPU is
    computed matrix by matrix, one a core; for many matrices of different shapes use `map_side_by_side(singular_values,
    matrices)`. Memory on top of W: at most 5 times the matrix in float32, for each matrix in flight.

    Args:
        W: matrix or batch of matrices.

    Returns:
        S: descending, ≥ 0, in float64 whatever the dtype of W.

    Raises:
        TypeError, ValueError: W is no floating-point matrix, is empty, or holds NaN or infinity.

    Example:
        >>> singular_values(torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 4.0]]))
        tensor([4., 3.], dtype=torch.float64)
    """
    require_matrix("W", W)
    return _stacked(_all_values, W)[0]


@torch.no_grad()
def top_singular_values(
    W: Tensor,  # (..., m, n)
    count: int = 16,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:  # (..., count), (...)
    """The largest singular values within 1 % (most within 1e-4), and the energy of all of them, exactly.

    The energy of the others is `energy - S.square().sum(-1)`, exact to 1e-5 of the whole. Values below 1e-6·σ₁ are only
    known to be that small. Memory on top of W: at most 2 times the matrix in float32, for each matrix in flight.

    Args:
        W: matrix or batch of matrices.
        count: how many values, ≥ 1.
        generator: source of the random start, on W's device; None gives the same start at every call.

    Returns:
        S: (..., min(count, m, n)) descending, float64; never above the true values but for rounding.
        energy: (...) ‖W‖_F² = Σσ², float64.

    Raises:
        TypeError, ValueError: count below 1; W is no floating-point matrix, is empty, or holds NaN or infinity.

    Example:
        >>> S, energy = top_singular_values(torch.diag(torch.tensor([1.0, 3.0, 2.0])), 2)
        >>> S.tolist(), energy.item()
        ([3.0, 2.0], 14.0)
    """
    require_matrix("W", W)
    require_count("count", count, low=1)
    count = min(count, *W.shape[-2:])
    if _few(W, count):
        S, squares = _stacked(lambda X: (_all_values(X)[0][:count], energy(X)), W)
    else:
        start = _start(W, count, generator)
        S, squares = _stacked(lambda X: largest_values(X, start), W)
    return S, squares


@torch.no_grad()
def truncated_svd(
    W: Tensor,  # (..., m, n)
    rank: int,  # r
    *,
    method: Literal["auto", "exact", "gram", "krylov"] = "auto",
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # (..., m, r), (..., r), (..., r, n)
    """The leading r singular triples: W ≈ U diag(S) Vh, the best approximation of rank r (Eckart and Young).

    Args:
        W: matrix or batch of matrices.
        rank: how many triples r, from 1 to min(m, n).
        method: "exact": LAPACK's SVD, cut. "gram": from the float64 Gram matrix of the short side; as exact as float32
            can show, and faster. "krylov": for r far below min(m, n), ten times faster than "gram" at 1024 × 1024 and
            r = 16; values within 1 % (most within 1e-4), as in `top_singular_values`. "auto": "exact" for float64,
            "gram" for the others.
        generator: source of the random start of "krylov", on W's device; None gives the same draw at every call.

    Returns:
        U: orthonormal columns, also where W has a lower rank.
        S: descending, ≥ 0.
        Vh: orthonormal rows. All in W's dtype; factorised in float32, or float64 for float64.

    Raises:
        TypeError, ValueError: rank or method out of range; W is no floating-point matrix, is empty, or holds NaN or
            infinity.

    Example:
        >>> W = torch.tensor([[0.0, 2.0], [5.0, 0.0], [0.0, 0.0]])
        >>> U, S, Vh = truncated_svd(W, 1)
        >>> S.tolist(), (U * S @ Vh).round(decimals=4).abs().tolist()
        ([5.0], [[0.0, 0.0], [5.0, 0.0], [0.0, 0.0]])
    """
    require_matrix("W", W)
    require_rank(rank, W)
    X = W.to(working_dtype(W.dtype))
    if method == "auto":
        method = "exact" if W.dtype == torch.float64 else "gram"
    if method == "exact":
        require_finite("W", W)
        U, S, Vh = torch.linalg.svd(X, full_matrices=False)
    elif method == "gram" or (method == "krylov" and _few(W, rank)):
        U, S, Vh = _stacked(lambda X: _gram_svd(X, rank), X)
    elif method == "krylov":
        start = _start(W, rank, generator)
        U, S, Vh = _stacked(lambda X: leading_triples(X, start), X)
    else:
        raise ValueError(f"method must be 'auto', 'exact', 'gram' or 'krylov', got {method!r}")
    return U[..., :rank].to(W.dtype), S[..., :rank].to(W.dtype), Vh[..., :rank, :].to(W.dtype)


def _few(W: Tensor, count: int) -> bool:
    """Whether W (..., m, n) has so few singular values that all of them cost no more than the `count` largest."""
    p = min(W.shape[-2:])
    return p <= SMALL or p <= 4 * count


def _start(W: Tensor, count: int, generator: torch.Generator | None) -> Tensor:  # (count, min(m, n)) float64
    """The random rows that Lanczos starts from."""
    source = seeded(W.device, generator)
    return torch.randn(count, min(W.shape[-2:]), dtype=torch.float64, device=W.device, generator=source)


def _stacked(function: Callable[[Tensor], tuple[Tensor, ...]], W: Tensor) -> tuple[Tensor, ...]:
    """`function` of each matrix of the batch W, side by side, each of its results stacked to the shape of the batch."""
    batch, shape = W.shape[:-2], W.shape[-2:]
    if W.ndim == 2:
        return function(W)
    if W.numel() == 0:
        return tuple(part.expand(*batch, *part.shape).clone() for part in function(W.new_zeros(shape)))
    results = list(map_side_by_side(function, W.reshape(-1, *shape).unbind()))
    return tuple(torch.stack(parts).reshape(*batch, *parts[0].shape) for parts in zip(*results, strict=True))


def _all_values(
    W: Tensor,  # (m, n)
) -> tuple[Tensor]:  # (min(m, n),)
    """All singular values by the Gram matrix, or by LAPACK where it lost digits."""
    X, scale = in_range("W", W, torch.float64)
    X = tall(X)
    eigenvalues = torch.linalg.eigvalsh(gram(X, torch.float64)).flip(0)
    # √(λ + δ) is off by δ/2λ of itself. Rounding left |δ| ≤ 0.44 eps‖G‖_F in all that we tried (tests/linalg/test_svd).
    rounding = torch.finfo(torch.float64).eps * torch.linalg.vector_norm(eigenvalues)
    if bool(eigenvalues[-1] * 2 * RELATIVE_ERROR < rounding):
        m, n = X.shape
        values = torch.linalg.svdvals(triangle(X) if m >= 4 * n else X.double())
    else:
        values = eigenvalues.sqrt()
    return (values * scale,)


def _gram_svd(
    W: Tensor,  # (m, n), float32 or float64
    rank: int,
    smallest: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # (m, r), (r,), (r, n)
    """V from the Gram matrix of the short side; U and S from the SVD of the narrow W V, so U is orthonormal always."""
    X, scale = in_range("W", W, torch.float64)
    X = tall(X)
    ascending = torch.linalg.eigh(gram(X, torch.float64)).eigenvectors
    V = (ascending[:, :rank] if smallest else ascending[:, -rank:]).flip(-1).to(X.dtype)
    U, S, turn = torch.linalg.svd(X @ V, full_matrices=False)
    Vh = turn @ V.mT
    S = S * scale
    return (U, S, Vh) if W.shape[0] >= W.shape[1] else (Vh.mT, S, U.mT)
