"""The row factor of a trained magnitude (DoRA), c = μ / ‖W + Δ‖_row, without an m×n temporary.

    ‖W + Δ‖²_row = ‖W‖²_row + 2 rowsum((W Aᵀ) ∘ B) + rowsum((B (A Aᵀ)) ∘ B),     Δ = B·A with its terms stacked

Cost: 2mnr for each optimizer step. The norm is detached, as in the paper's code: gradients flow to μ alone.
Paper: DoRA 2402.09353; theirs forms W + BA in each forward pass.
"""

import torch
from torch import Tensor

from eckart.adapters.adapter import Adapter


def row_factor(adapter: Adapter, W: Tensor) -> Tensor:  # (m, n) -> (m,)
    """c of an adapter with a magnitude, differentiable in the magnitude."""
    assert adapter.magnitude is not None
    norm = row_norm(adapter, W)
    return adapter.magnitude / torch.where(norm > 0, norm, 1.0).to(adapter.magnitude.dtype)


@torch.no_grad()
def row_norm(adapter: Adapter, W: Tensor) -> Tensor:  # (m,)
    """‖W + Δ‖ of each row, in float32 or wider, detached."""
    wide = torch.promote_types(W.dtype, torch.float32)
    terms = adapter.terms()
    if terms is None:
        return torch.linalg.vector_norm(W.to(wide) + adapter.delta().to(wide), dim=-1)
    B = torch.cat([scale * B.to(wide) for B, _, scale in terms], dim=-1)
    A = torch.cat([A.to(wide) for _, A, _ in terms], dim=-2)
    W = W.to(wide)
    cross = ((W @ A.mT) * B).sum(-1)
    own = ((B @ (A @ A.mT)) * B).sum(-1)
    return (W.square().sum(-1) + 2 * cross + own).clamp_min(0).sqrt()
