"""The inverse square root of a Gram matrix, which turns a matrix into its polar factor: M (MᵀM)^(−1/2).

Cost: one eigendecomposition, O(r³); on a GPU torch's waits for the device.
Paper: none.
"""

import torch
from torch import Tensor

from eckart.linalg._check import require_matrix, working_dtype


@torch.no_grad()
def inverse_root(
    M: Tensor,  # (..., r, r) symmetric, positive semidefinite
) -> Tensor:  # (..., r, r)
    """M^(−1/2), with eigenvalues below the rounding of M (r ε of the largest) raised to that.

    So B (BᵀB)^(−1/2) has singular values 1, less only for what lies below √(r ε) of B's largest (4e-3 in float32 at
    r = 128); doing it twice brings all down to about r ε to 1.

    Args:
        M: Gram matrices such as BᵀB, any float dtype; the arithmetic is float32 or float64.

    Returns:
        Symmetric, in M's dtype; 0 for M = 0.

    Raises:
        ValueError: M is not square.

    Example:
        >>> B = torch.tensor([[2.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
        >>> B @ inverse_root(B.T @ B)
        tensor([[1., 0.],
                [0., 1.],
                [0., 0.]])
    """
    require_matrix("M", M)
    if M.shape[-1] != M.shape[-2]:
        raise ValueError(f"M {tuple(M.shape)} must be square")
    dtype = working_dtype(M.dtype)
    peak = M.to(dtype).diagonal(dim1=-2, dim2=-1).amax(-1)[..., None, None]
    scale = torch.where(peak > 0, peak, 1.0)
    values, V = torch.linalg.eigh(M.to(dtype) / scale)
    least = M.shape[-1] * torch.finfo(dtype).eps * values[..., -1:]
    roots = torch.where(least > 0, torch.maximum(values, least), torch.inf).rsqrt()
    return ((V * roots.unsqueeze(-2)) @ V.mT / scale.sqrt()).to(M.dtype)
