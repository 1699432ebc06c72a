"""Starts from the gradient ∇ = ∂loss/∂W, the mean over some batches: the first steps go where full training would go.

    LoRA-GA:  ∇ = U Σ Vᵀ,  B₀ = ζ U_{r:2r}, A₀ = ζ V_{:r}ᵀ, ζ = m^{1/4}/√γ, γ = 16, s = α/√r     (2407.05000)
              one gradient step changes s·BA by −η s²(BBᵀ∇ + ∇AᵀA) = −η s² ζ² times the best rank 2r of ∇
    LoRA-One: s·B₀A₀ = (s/γσ₁)·(best rank r of −∇), γ = 128: one step of full training, left in the model  (2502.01235)
    LoRA-SB:  s·B R₀ A = best rank r of −η·sign(∇), Adam's first step: B and A frozen and orthonormal       (2411.19557)

Cost: one forward and backward pass for each batch, all gradients held in float32 meanwhile; block Lanczos for each.

Paper: LoRA-GA as its code, whose factors come out of W; ours out of a frozen pair (PEFT's takes B = UΣ, A unscaled).
Where 2r > min(m, n) the last r directions serve B. LoRA-One as its code: √Σ and σ₁ are missing in its README. LoRA-SB's
code takes for η the learning rate of the first step of its schedule; it is an option here.
"""

import torch
from torch import Tensor

from eckart.adapters.shapes.core import Core
from eckart.adapters.shapes.two_factor import TwoFactor
from eckart.adapters.starts.split import fill, rounding
from eckart.adapters.starts.start import Look
from eckart.linalg import truncated_svd


def approximation(adapter: TwoFactor, look: Look) -> None:
    """LoRA-GA: the first r directions at the input, the next r at the output."""
    G, r = look.observed("gradient"), adapter.rank
    m, n = adapter.shape
    directions = min(2 * r, m, n)
    U, _, Vh = truncated_svd(G, directions, method="krylov")
    zeta = m**0.25 / _positive(look, "gamma") ** 0.5
    adapter.B.copy_(zeta * U[..., directions - r :])
    adapter.A.copy_(zeta * Vh[..., :r, :])
    adapter.freeze(-1.0)


def one_step(adapter: TwoFactor, look: Look) -> None:
    """LoRA-One: s·B A is a step down the gradient, and stays in the model."""
    G = look.observed("gradient")
    U, S, Vh = truncated_svd(-G, adapter.rank, method="krylov")
    root = (_relative(S) / _positive(look, "gamma")).sqrt()
    dead = rounding(G).unsqueeze(-1) >= S
    fill(adapter, U * root.unsqueeze(-2), root.unsqueeze(-1) * Vh, dead, look.generator)


def update(adapter: Core, look: Look) -> None:
    """LoRA-SB: s·B R A is the best rank r of Adam's first step, and stays in the model."""
    step = -_positive(look, "eta") * look.observed("gradient").sign()
    U, S, Vh = truncated_svd(step, adapter.rank, method="krylov")
    adapter.B.copy_(U)
    adapter.R.copy_(torch.diag_embed(S / adapter.scale))
    adapter.A.copy_(Vh)


def _relative(S: Tensor) -> Tensor:
    """σ / σ₁, and zero where there is nothing."""
    first = S[..., :1]
    return torch.where(first > 0, S / torch.where(first > 0, first, 1.0), 0.0)


def _positive(look: Look, name: str) -> float:
    value = look.options[name]
    if not value > 0:
        raise ValueError(f"{name}: {value!r}; give a number above 0")
    return float(value)
