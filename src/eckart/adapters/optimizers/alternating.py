"""Alternating steps: B moves in one step and A in the next, each closest to the full gradient that it can be alone.

    even steps   g_B ← s⁻² g_B (AAᵀ + λI)⁻¹,     A rests:   s·g_B·A → G Π_A
    odd steps    g_A ← s⁻² (BᵀB + λI)⁻¹ g_A,     B rests:   s·B·g_A → Π_B G

The momentum of the factor that rests is carried over to the other's new basis, so that it goes on meaning the same move
of the product: after B became B′, M_A ← (B′ᵀB′ + λI)⁻¹ B′ᵀB M_A, and so for M_B.

Cost: half of a joint preconditioned step's, and one copy of the moving factors.
Paper: AltLoRA 2505.12455. Checked against its code (λ = 1e-3, momentum carried in the same way); the text of the paper
was not at hand. Its code moves A and then B in one step with gradients of the same backward pass, has no s⁻², and keeps
momentum without second moments; here each move has its own gradient, and the inner optimizer says what moments there
are (SGD with momentum for theirs). Decay of weights comes with the moves, so at half the rate.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from eckart.adapters.optimizers.factor_optimizer import FactorOptimizer, Pair, batched, wide
from eckart.adapters.optimizers.preconditioned import inverses
from eckart.linalg import solve_gram

MOMENTUM = ("exp_avg", "momentum_buffer")  # as torch's optimizers call it


class Alternating(FactorOptimizer):
    """Moves B and A in turn, B first (A has no gradient while B = 0); all other parameters move in every step.

    Whose turn it is stands in the first group, under "turn", and goes with the checkpoint.

    Args:
        inner: The optimizer that steps.
        model: The model with adapters.
        damping: λ.

    Raises:
        ValueError: A factor does not train.

    Example:
        >>> from eckart.adapters import adapt
        >>> model = nn.Sequential(nn.Linear(6, 4))
        >>> said = adapt(model, rank=2)
        >>> optimizer = Alternating(torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1), model)
        >>> A = optimizer.pairs[0].A.detach().clone()
        >>> model(torch.ones(3, 6)).sum().backward()
        >>> optimizer.step()
        >>> torch.equal(A, optimizer.pairs[0].A), optimizer.param_groups[0]["turn"]
        (True, 1)
    """

    def __init__(self, inner: Optimizer, model: nn.Module, *, damping: float = 1e-3) -> None:
        super().__init__(inner, model, damping)
        self.require_both()
        self.param_groups[0].setdefault("turn", 0)

    def rewrite(self, pairs: list[Pair]) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        of_B = self.param_groups[0].get("turn", 0) % 2 == 0
        Grams = []
        for pair in pairs:
            (fixed,) = wide(pair.A.mT if of_B else pair.B)
            Grams.append(fixed.mT @ fixed)
        for pair, K in zip(pairs, inverses(Grams, self.damping), strict=True):
            grad = pair.B.grad if of_B else pair.A.grad
            if grad is None:
                yield None, None
                continue
            (g,) = wide(grad)
            yield (g @ K / pair.scale**2, None) if of_B else (None, K @ g / pair.scale**2)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of B or of A, and of all that is no factor."""
        group = self.param_groups[0]
        of_B = group.setdefault("turn", 0) % 2 == 0
        before = [(pair, (pair.B if of_B else pair.A).detach().clone()) for pair in self.pairs]
        loss = super().step(closure)
        # a factor without a gradient stayed, as those of an adapter that does not act
        self._carry(of_B, [each for each in before if (each[0].B if of_B else each[0].A).grad is not None])
        group["turn"] += 1
        return loss

    def _carry(self, of_B: bool, moved: list[tuple[Pair, Tensor]]) -> None:
        """Rewrite the resting factors' momentum for the moved factors."""
        rows: list[tuple[Tensor, Tensor, Tensor]] = []
        for pair, old in moved:
            resting = self.state.get(pair.A if of_B else pair.B, {})
            for key in MOMENTUM:
                if isinstance(momentum := resting.get(key), Tensor):
                    new, was = wide(pair.B, old) if of_B else wide(pair.A.mT, old.mT)
                    rows.append((momentum, new.mT @ new, new.mT @ was))
        if not rows:
            return
        turns = batched(lambda M, Y: solve_gram(M, Y, self.damping), [row[1] for row in rows], [row[2] for row in rows])
        for (momentum, _, _), turn in zip(rows, turns, strict=True):
            (M,) = wide(momentum)
            momentum.copy_(turn @ M if of_B else M @ turn.mT)
