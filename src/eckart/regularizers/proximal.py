"""Singular value thresholding of a product B·A, written back into its factors.

With BA = U S Vᵀ and f = √((S − τ)_+ / S)

    B ← U f Uᵀ B,    A ← A V f Vᵀ        ⇒        BA ← U (S − τ)_+ Vᵀ, the proximal map of τ‖BA‖_*

Both factors are filtered from outside, so the inner coordinates (a head's dimensions, an adapter's rank) are those of
before: an optimizer's moments and a rotary embedding, which acts on those coordinates, keep their meaning. Balancing
the factors anew, U√S and √S Vᵀ, would turn them. A direction that reaches 0 leaves both factors, and no gradient brings
it back, as with weight decay on both. Where the product is 0 to begin with (an adapter's zero factor), nothing changes.

Cost: two QRs and one SVD of an r×r core, O((m+n)r²).
Paper: none (Cai, Candès, Shen, arXiv 0810.3286, threshold the dense matrix).
"""

import torch
from torch import Tensor

from eckart.linalg import product_svd, working_dtype

ROUNDING = 16  # in eps of the largest singular value: what QR and SVD leave of a zero one, however long the factors


def shrink_product(
    B: Tensor,  # (..., m, r)
    A: Tensor,  # (..., r, n)
    step: float,
) -> tuple[Tensor, Tensor]:  # (..., m, r), (..., r, n)
    """Factors of argmin_X ½‖X − BA‖² + step·‖X‖_*, in the inner coordinates of B and A.

    Args:
        B: left factor, any float dtype.
        A: right factor.
        step: τ ≥ 0, what every singular value of BA loses.

    Returns:
        The new factors, in the dtypes of the old.

    Raises:
        ValueError: step is negative, factors that do not multiply, or NaN or infinite entries.

    Example:
        >>> B, A = shrink_product(torch.diag(torch.tensor([4.0, 1.0])), torch.eye(2), 1.5)
        >>> (B @ A).diagonal().round(decimals=4).abs().tolist()  # 4 and 1, less 1.5
        [2.5, 0.0]
    """
    if not 0 <= step < float("inf"):
        raise ValueError(f"step must be a finite number of at least 0, got {step}")
    dtype = working_dtype(B.dtype)
    left, right = B.to(dtype), A.to(dtype)
    U, S, Vh = product_svd(left, right)
    limits = torch.finfo(dtype)
    zero = S[..., :1] * ROUNDING * limits.eps
    kept = (1 - step / S.clamp(min=limits.tiny)).clamp(min=0).sqrt()  # f
    loss = torch.where(S.gt(zero), 1 - kept, 0.0)  # what is 0 already is left alone
    left = left - (U * loss.unsqueeze(-2)) @ (U.mT @ left)
    right = right - ((right @ Vh.mT) * loss.unsqueeze(-2)) @ Vh
    return left.to(B.dtype), right.to(A.dtype)
