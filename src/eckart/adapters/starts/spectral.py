"""Starts from the weight's own directions: the largest (PiSSA, LoRA-XS), the smallest (MiLoRA), the first rows (OLoRA).

    PiSSA:   W = U Σ Vᵀ,  s·B₀A₀ = U_r Σ_r V_rᵀ of the largest σ        (2404.02948)
    MiLoRA:  the same of the smallest σ                                 (2406.09044)
    MiCA:    B = U of the smallest σ, frozen; A starts at 0             (2604.01694)
    OLoRA:   W = Q R,  B₀ = Q_{:r}, A₀ = R_{:r}                         (2406.01775)
    LoRA-XS: B = U_r Σ_r, A = V_rᵀ, frozen; the core R starts at 0      (2405.17604)

B₀A₀ is subtracted by a frozen pair, not from the weight.

Cost for W (m, n), p = min(m, n): block Lanczos, some tens of products with W, for PiSSA and LoRA-XS; an
eigendecomposition, m n p + 4/3 p³, for MiLoRA and MiCA; 2 m r² + 2 m n r for OLoRA, as the QR of W's first r columns is
the first r columns of W's.

Paper: PiSSA's and MiLoRA's code takes W's whole SVD (PiSSA's fast form a randomised one); ours is within 1 % in σ.
OLoRA may differ from it in signs, B's and A's alike. LoRA-XS draws R from N(0, 1e-5²); at zero R learns as well, and
the model is what it was. Where W is of lower rank, LoRA-XS has directions of length σ = 0, which cannot learn: ours
have 1.
"""

import torch

from eckart.adapters.shapes.core import Core
from eckart.adapters.shapes.two_factor import TwoFactor
from eckart.adapters.starts.split import rounding, split
from eckart.adapters.starts.start import Look
from eckart.linalg import orthonormalize, smallest_svd, truncated_svd


def largest(adapter: TwoFactor, look: Look) -> None:
    """PiSSA: the r largest directions of W."""
    W = look.exact_weight()
    split(adapter, *truncated_svd(W, adapter.rank, method="krylov"), look.generator, rounding(W))
    adapter.freeze(-1.0)


def smallest(adapter: TwoFactor, look: Look) -> None:
    """MiLoRA: the r smallest directions of W."""
    W = look.exact_weight()
    split(adapter, *smallest_svd(W, adapter.rank), look.generator, rounding(W))
    adapter.freeze(-1.0)


def unused_outputs(adapter: TwoFactor, look: Look) -> None:
    """MiCA: B is the r output directions that W uses least, A zero."""
    U, _, _ = smallest_svd(look.exact_weight(), adapter.rank)
    adapter.B.copy_(U)
    adapter.A.zero_()


def first_rows(adapter: TwoFactor, look: Look) -> None:
    """OLoRA: the first r columns and rows of W = QR."""
    W = look.exact_weight()
    Q = orthonormalize(W[..., : adapter.rank])
    adapter.B.copy_(Q)
    adapter.A.copy_(Q.mT @ W)
    adapter.freeze(-1.0)


def core(adapter: Core, look: Look) -> None:
    """LoRA-XS: frozen factors from the r largest directions of W, the core zero."""
    W = look.exact_weight()
    U, S, Vh = truncated_svd(W, adapter.rank, method="krylov")
    length = torch.where(rounding(W).unsqueeze(-1) < S, S, 1.0)
    adapter.B.copy_(U * length.unsqueeze(-2))
    adapter.A.copy_(Vh)
    adapter.R.zero_()
