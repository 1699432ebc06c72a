"""Gradients of the factors times the inverse of the other factor's Gram matrix.

    Riemannian   g_A ← (BᵀB + λI)⁻¹ g_A,   g_B ← g_B (AAᵀ + λI)⁻¹
    LoRA-FA      A fixed,                  g_B ← s⁻² g_B (AAᵀ + λI)⁻¹

With plain descent and λ = 0 the move of B·A no longer depends on how the product is split (B → BM, A → M⁻¹A): a small
factor beside a large one learns as fast. LoRA-FA's is the move of B for which s·dB·A is closest to G.

Cost: 2(m+n)r² for each pair, more than the step itself and little beside the backward pass.
Paper: Riemannian 2402.02347, λ = 1e-2 as in PEFT (1e-6 in its authors' descent); inverses there are pseudo-inverses.
LoRA-FA 2308.03303 with PEFT's λ = 1e-8. Adam takes these gradients as in both codes.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from eckart.adapters.optimizers.factor_optimizer import FactorOptimizer, Pair, batched, wide
from eckart.linalg import solve_gram


class Riemannian(FactorOptimizer):
    """Preconditions both factors' gradients with the other factor.

    Args:
        inner: The optimizer that steps.
        model: The model with adapters.
        damping: λ; too small a one makes long steps of A while B is close to its zero start.

    Example:
        >>> from eckart.adapters import adapt
        >>> model = nn.Sequential(nn.Linear(6, 4))
        >>> said = adapt(model, rank=2)
        >>> optimizer = Riemannian(torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]), model)
        >>> model(torch.ones(3, 6)).sum().backward()
        >>> optimizer.step()
        >>> len(optimizer.state)
        2
    """

    def __init__(self, inner: Optimizer, model: nn.Module, *, damping: float = 1e-2) -> None:
        super().__init__(inner, model, damping)

    def rewrite(self, pairs: list[Pair]) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        BtB, AAt = grams(pairs)
        for pair, K_B, K_A in zip(pairs, inverses(BtB, self.damping), inverses(AAt, self.damping), strict=True):
            g_B = None if pair.B.grad is None else wide(pair.B.grad)[0] @ K_A
            g_A = None if pair.A.grad is None else K_B @ wide(pair.A.grad)[0]
            yield g_B, g_A


class LoraFA(FactorOptimizer):
    """Gives B, where it trains alone (method "lora-fa"), the gradient that moves the product closest to G.

    Args:
        inner: The optimizer that steps.
        model: The model with adapters.
        damping: λ.

    Raises:
        ValueError: An A trains.

    Example:
        >>> from eckart.adapters import adapt
        >>> model = nn.Sequential(nn.Linear(6, 4))
        >>> said = adapt(model, "lora-fa", rank=2)
        >>> optimizer = LoraFA(torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]), model)
        >>> len(optimizer.pairs)
        1
    """

    def __init__(self, inner: Optimizer, model: nn.Module, *, damping: float = 1e-8) -> None:
        super().__init__(inner, model, damping)
        if any(A for _, A in self.trains()):
            raise ValueError("model: an A trains, and this optimizer is for fixed ones; adapt with method 'lora-fa'")

    def rewrite(self, pairs: list[Pair]) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        _, AAt = grams(pairs)
        for pair, K_A in zip(pairs, inverses(AAt, self.damping), strict=True):
            g_B = None if pair.B.grad is None else wide(pair.B.grad)[0] @ K_A / pair.scale**2
            yield g_B, None


def grams(pairs: list[Pair]) -> tuple[list[Tensor], list[Tensor]]:
    """BᵀB and AAᵀ of each pair, (r, r)."""
    factors = [wide(pair.B, pair.A) for pair in pairs]
    return [B.mT @ B for B, _ in factors], [A @ A.mT for _, A in factors]


def inverses(matrices: list[Tensor], damping: float) -> list[Tensor]:
    """(M + λI)⁻¹ of each."""

    def kernel(M: Tensor) -> Tensor:
        return solve_gram(M, torch.eye(M.shape[-1], dtype=M.dtype, device=M.device).expand_as(M), damping)

    return batched(kernel, matrices)
