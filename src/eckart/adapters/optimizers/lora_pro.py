"""LoRA-Pro: gradients of B and A for which the product moves as close to the full gradient G as factors allow.

    g_A ← s⁻² (BᵀB)⁻¹ g_A + X A,     g_B ← s⁻² (I − B(BᵀB)⁻¹Bᵀ) g_B (AAᵀ)⁻¹ − B X

The first-order move s(B g_A + g_B A) = Π_B G + (I − Π_B) G Π_A is the projection of G onto all moves that factors can
make, whatever X (r, r) is; X is chosen so that the factors themselves change as little as possible from g_A and g_B:

    BᵀB X + X AAᵀ = −s⁻² (BᵀB)⁻¹ g_A Aᵀ

Cost: 4(m+n)r² for each pair and two dozen inverses of r×r.
Paper: 2407.18242, whose "efficient" mode this is: the new gradients go through the inner optimizer, moments are r(m+n).
Its "full" mode keeps dense m×n moments of the equivalent gradient; that is not here.
"""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.optim import Optimizer

from eckart.adapters.optimizers.factor_optimizer import FactorOptimizer, Pair, batched, wide
from eckart.adapters.optimizers.preconditioned import grams, inverses
from eckart.linalg import solve_sylvester


class LoraPro(FactorOptimizer):
    """Gives both factors the gradients whose product's move is closest to the full gradient.

    Args:
        inner: The optimizer that steps.
        model: The model with adapters; both factors train.
        damping: λ on BᵀB and AAᵀ.

    Raises:
        ValueError: A factor does not train.

    Example:
        >>> import torch
        >>> from eckart.adapters import adapt
        >>> model = nn.Sequential(nn.Linear(6, 4))
        >>> said = adapt(model, rank=2)
        >>> optimizer = LoraPro(torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]), model)
        >>> len(optimizer.pairs)
        1
    """

    def __init__(self, inner: Optimizer, model: nn.Module, *, damping: float = 1e-8) -> None:
        super().__init__(inner, model, damping)
        self.require_both()

    def rewrite(self, pairs: list[Pair]) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        BtB, AAt = grams(pairs)
        K_B, K_A = inverses(BtB, self.damping), inverses(AAt, self.damping)
        first, right = [], []  # s⁻²(BᵀB)⁻¹g_A and the right-hand sides
        for pair, K in zip(pairs, K_B, strict=True):
            A, g_A = wide(pair.A, pair.A.grad if pair.A.grad is not None else pair.A.detach() * 0)
            first.append(K @ g_A / pair.scale**2)
            right.append(-first[-1] @ A.mT)
        X = batched(solve_sylvester, BtB, AAt, right)
        for pair, own, K, L, x in zip(pairs, first, K_B, K_A, X, strict=True):
            B, A, g_B = wide(pair.B, pair.A, pair.B.grad if pair.B.grad is not None else pair.B.detach() * 0)
            outside = (g_B - B @ (K @ (B.mT @ g_B))) @ L / pair.scale**2
            yield outside - B @ x, own + x @ A
