"""To a subspace and back: R = X V and W ← β W + c F Vᵀ, with a basis of columns or a choice of coordinates."""

import torch
from torch import Tensor


def row_squares(
    X: Tensor,  # (..., p, q)
) -> Tensor:  # (..., p, 1)
    """‖X_i‖² of each row."""
    if X.device.type == "cpu" and X.shape[-1] > 1 and X.mT.is_contiguous():  # torch's norm walks against the memory
        return X.square().sum(-1, keepdim=True)
    return torch.linalg.vector_norm(X, dim=-1, keepdim=True).square()


def down(
    X: Tensor,  # (..., p, q)
    V: Tensor,  # (..., q, r), or (r,) integers
) -> Tensor:  # (..., p, r)
    """X in the basis."""
    return X @ V if V.is_floating_point() else X.index_select(-1, V)


def up(
    F: Tensor,  # (..., p, r)
    V: Tensor,  # (..., q, r), or (r,) integers
    columns: int,  # q
) -> Tensor:  # (..., p, q)
    """F Vᵀ."""
    if V.is_floating_point():
        return F @ V.mT
    return F.new_zeros(*F.shape[:-1], columns).index_copy_(-1, V, F)


def add_up(
    W: Tensor,  # (..., p, q)
    F: Tensor,  # (..., p, r)
    V: Tensor,  # (..., q, r), or (r,) integers
    keep: float,  # β
    scale: float,  # c
) -> Tensor:
    """W ← β W + c F Vᵀ in place, without a matrix of W's size where W is contiguous or the transpose of such."""
    if not V.is_floating_point():
        return W.mul_(keep).index_add_(-1, V, F, alpha=scale) if keep != 1 else W.index_add_(-1, V, F, alpha=scale)
    return (W.baddbmm_ if W.ndim == 3 else W.addmm_)(F, V.mT, beta=keep, alpha=scale)
