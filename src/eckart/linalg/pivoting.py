"""Rewrite a product B·A on r of its own rows (PIFA, arXiv 2501.19090): fewer numbers, the same product.

    (B A)_J = C = B_J A,    (B A)_rest = P C,    P = B_rest B_J⁻¹

B (m, r), A (r, n), J the r pivot rows, the rest m−r rows. C (r, n) and P (m−r, r) hold r(m+n−r) numbers where B and A
hold r(m+n), so at r = min(m, n) they hold no more than the dense matrix.

J comes from LU with partial pivoting of an orthonormal basis Q of B's columns, B = Q R. Since P = Q_rest Q_J⁻¹ for any
R, a rank-deficient B is no special case: Q has full rank, R need not. Cost: O(m r²) once, in float64, because Q_J is
as ill-conditioned as the choice of rows leaves it.

Paper: it takes the rows from pivoted QR of the product; LU is there for every device and batch. max|P| is about 2 on
random factors (1 is the least that any choice of rows can promise), against 1.2 there.
"""

import torch
from torch import Tensor

from eckart.linalg._check import require_finite


def pivot_rows(B: Tensor) -> Tensor:  # (..., m, r) -> (..., r) int64
    """Choose r rows of a tall factor of which all its rows are moderate combinations.

    Args:
        B: (..., m, r) with r ≤ m, any float dtype; it may be rank-deficient.

    Returns:
        The row numbers J (..., r), ascending.

    Raises:
        TypeError: B is not floating point.
        ValueError: B is not a matrix with r ≤ m, or not finite.

    Example:
        >>> pivot_rows(torch.tensor([[0.0, 0.1], [0.0, 2.0], [5.0, 1.0], [1.0, 1.0]]))
        tensor([1, 2])
    """
    _require_tall(B)
    return _pivots(torch.linalg.qr(B.double()).Q)


def pivot_factors(
    B: Tensor,  # (..., m, r)
    A: Tensor,  # (..., r, n)
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rewrite B·A as r of its rows, and the combinations of them that the other rows are.

    Args:
        B: (..., m, r) with r ≤ m; r = 0 is the zero product.
        A: (..., r, n), same dtype and device.

    Returns:
        index: (..., r) int64, the pivot rows J, ascending.
        rest: (..., m−r) int64, the other rows, ascending.
        P: (..., m−r, r), the combinations: (B A)[rest] = P C.
        C: (..., r, n), the pivot rows of the product: (B A)[index] = C.

    Raises:
        TypeError: B or A is not floating point.
        ValueError: the shapes do not chain, r > m, or an entry is not finite.

    Example:
        >>> B, A = torch.tensor([[1.0], [4.0], [-2.0]]), torch.tensor([[1.0, 2.0]])
        >>> index, rest, P, C = pivot_factors(B, A)
        >>> index, P.flatten(), C
        (tensor([1]), tensor([ 0.2500, -0.5000]), tensor([[4., 8.]]))
    """
    _require_tall(B)
    if A.ndim < 2 or A.shape[:-2] != B.shape[:-2] or A.shape[-2] != B.shape[-1]:
        raise ValueError(f"A must be (..., r, n) to follow B of shape {tuple(B.shape)}, got shape {tuple(A.shape)}")
    require_finite("A", A)
    Q = torch.linalg.qr(B.double()).Q
    index = _pivots(Q)
    rest = _complement(index, B.shape[-2])
    P = torch.linalg.solve(_rows(Q, index), _rows(Q, rest), left=False)
    C = _rows(B, index).double() @ A.double()
    return index, rest, P.to(B.dtype), C.to(A.dtype)


def _pivots(Q: Tensor) -> Tensor:  # (..., m, r) orthonormal -> (..., r)
    r = Q.shape[-1]
    if r == 0:
        return torch.empty(*Q.shape[:-2], 0, dtype=torch.int64, device=Q.device)
    LU, swaps = torch.linalg.lu_factor(Q)
    order = torch.lu_unpack(LU, swaps, unpack_data=False)[0].argmax(-2)  # row i of the pivoted Q is row order[i] of Q
    return order[..., :r].sort(-1).values


def _complement(index: Tensor, m: int) -> Tensor:  # (..., r) -> (..., m-r)
    """The numbers below m that are not in `index`, ascending, at a size known without reading the device."""
    taken = torch.zeros(*index.shape[:-1], m, dtype=torch.int8, device=index.device).scatter_(-1, index, 1)
    return taken.sort(dim=-1, stable=True).indices[..., : m - index.shape[-1]]


def _rows(W: Tensor, index: Tensor) -> Tensor:  # (..., m, n), (..., k) -> (..., k, n)
    return W.gather(-2, index.unsqueeze(-1).expand(*index.shape, W.shape[-1]))


def _require_tall(B: Tensor) -> None:
    if not B.is_floating_point():
        raise TypeError(f"B must be real floating point, got {B.dtype} of shape {tuple(B.shape)}; use B.float()")
    if B.ndim < 2 or B.shape[-1] > B.shape[-2]:
        raise ValueError(
            f"B must be (..., m, r) with r ≤ m, got shape {tuple(B.shape)}; "
            "a product of rank above m is better kept dense"
        )
    require_finite("B", B)
