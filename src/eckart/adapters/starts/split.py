"""Share a product of known singular triples out between the two factors of an adapter.

    s·B A = U diag(σ) Vᵀ:     B = U √(σ/s),  A = √(σ/s) Vᵀ

Where σ = 0 both columns would be zero for ever, as each one's gradient is a product with the other. There A is drawn as
LoRA draws it and B stays zero: the product is the same, and the direction can learn.
Paper: none; peers leave such directions dead.
"""

import torch
from torch import Tensor

from eckart.adapters.shapes.two_factor import TwoFactor


def split(adapter: TwoFactor, U: Tensor, S: Tensor, Vh: Tensor, generator: torch.Generator, floor: Tensor) -> None:
    """Set B and A.

    Args:
        adapter: Its scale is s.
        U: (..., m, r).
        S: (..., r) what s·B A shall have along U and V.
        Vh: (..., r, n).
        generator: For directions that have nothing.
        floor: (...) what counts as nothing, from `rounding`.
    """
    root = (S / adapter.scale).sqrt()
    dead = floor.unsqueeze(-1) >= S
    fill(adapter, U * root.unsqueeze(-2), root.unsqueeze(-1) * Vh, dead, generator)


def fill(adapter: TwoFactor, B: Tensor, A: Tensor, dead: Tensor, generator: torch.Generator) -> None:
    """Set B and A, with directions that are dead (..., r) as LoRA's start."""
    adapter.B.copy_(torch.where(dead.unsqueeze(-2), 0.0, B))
    adapter.A.copy_(torch.where(dead.unsqueeze(-1), drawn(adapter, generator).to(A), A))


def drawn(adapter: TwoFactor, generator: torch.Generator) -> Tensor:  # (..., r, n), float32
    """A as LoRA draws it, uniform in ±1/√n, on the adapter's device."""
    n = adapter.shape[1]
    return torch.empty(adapter.A.shape).uniform_(-(n**-0.5), n**-0.5, generator=generator).to(adapter.A.device)


def rounding(W: Tensor) -> Tensor:  # (..., m, n) -> (...)
    """How large a singular value of W may be by rounding alone: max(m, n)·eps·‖W‖_F."""
    return max(W.shape[-2:]) * torch.finfo(W.dtype).eps * torch.linalg.vector_norm(W, dim=(-2, -1))
