"""Rewrite a product B·A on r of its own rows (PIFA, arXiv 2501.19090): fewer numbers, the same product.

    (B A)_J = C = B_J A,    (B A)_rest = P C,    P = B_rest B_J⁻¹

B (m, r), A (r, n), J the r pivot rows, the rest m−r rows. C (r, n) and P (m−r, r) hold r(m+n−r) numbers where B and A
hold r(m+n), so at r = min(m, n) they hold no more than the dense matrix.

J comes from LU with partial pivoting, B = Π L U: its first r rows. P = L_rest L_J⁻¹ whatever U is, so a B that is
rank-deficient or ill-conditioned is no special case. P can grow like 2^r, which no random or trained factor comes near;
where it passes 1000, J is taken from LU of an orthonormal basis of B's columns instead. Cost: at most 2 m r² flops,
once, in float64.

Paper: it takes the rows from pivoted QR of the product; LU is there for every device and batch. max|P| is about 2 on
random factors (1 is the least that any choice of rows can promise), against 1.2 there.
"""

import torch
from torch import Tensor

from eckart.linalg._check import require_finite

LARGE = 1000.0  # |P| above which the rows are chosen again


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
    return _pivoted(B)[0]


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
    index, rest, P = _pivoted(B)
    C = _rows(B, index).double() @ A.double()
    return index, rest, P.to(B.dtype), C.to(A.dtype)


def _pivoted(B: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (..., m, r) -> (..., r), (..., m−r), (..., m−r, r)
    """J, the rest and P, in float64."""
    found = _eliminated(B.double())
    large = ~(found[2].abs() <= LARGE)  # NaN and infinity too
    return _eliminated(torch.linalg.qr(B.double()).Q) if bool(large.any()) else found


def _eliminated(B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    m, r = B.shape[-2:]
    if r == 0:
        rows = torch.arange(m, device=B.device).expand(B.shape[:-1])
        return rows[..., :0], rows, B
    LU, swaps, _ = torch.linalg.lu_factor_ex(B)  # a pivot of zero is no matter
    order = torch.lu_unpack(LU, swaps, unpack_data=False)[0].argmax(-2)  # row i of ΠᵀB is row order[i] of B
    index, columns = order[..., :r].sort(-1)
    rest, rows = order[..., r:].sort(-1)
    top, bottom = LU[..., :r, :], _rows(LU[..., r:, :], rows)
    P = torch.linalg.solve_triangular(top, bottom, upper=False, left=False, unitriangular=True)
    return index, rest, P.gather(-1, columns.unsqueeze(-2).expand(*rest.shape, r))


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
