"""Explicit low-rank regularisers of any network: a term of the loss, or a step after the optimizer's.

    NuclearDecay      λ Σ‖W‖_*         step: W ← prox of ηλ‖·‖_*, every singular value loses ηλ (0810.3286)
    FrobeniusDecay    ½λ Σ‖W‖_F²       step: B ← B − ηλ B AAᵀ, A ← A − ηλ BᵀB A where W = BA is stored as factors
                                       (2105.01029), W ← (1 − ηλ) W where it is dense: weight decay on the map itself

W is a dense matrix, each matrix of a stack (experts), or a product that stays factored: a FactoredLinear, an attention
product, a pair (B, A). Weight decay on balanced factors is NuclearDecay's loss; FrobeniusDecay of a product does not
prefer low rank. The loss lets an adaptive optimizer scale the penalty's gradient; the step is decoupled from it, as
AdamW's decay is, and only the step of NuclearDecay makes singular values exactly 0.

Cost: an SVD of each W, of r×r cores where it is factored: O(mn·min(m,n)) and O((m+n)r²); FrobeniusDecay has none.
Paper: 2105.01029 adds the Frobenius decay's slope to the gradient, as `loss` does.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from eckart.linalg import nuclear_norm, product_nuclear_norm, prox_nuclear
from eckart.nn import FactoredLinear, Matrix, Patterns, matrices
from eckart.regularizers.attention import AttentionProduct
from eckart.regularizers.proximal import shrink_product

Pair = tuple[Tensor, Tensor]  # B (m, r) and A (r, n), parameters
FROZEN = "are frozen (requires_grad=False)"


class _Held:
    """Two factors that are parameters of their own: of a FactoredLinear, or a pair from the caller."""

    shared = False

    def __init__(self, pair: Pair) -> None:
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(W, Tensor) for W in pair):
            raise TypeError(f"on must hold attention products and pairs (B, A) of tensors, got {type(pair).__name__}")
        self.left, self.right = pair

    def write(self, left: Tensor, right: Tensor) -> None:
        with torch.no_grad():
            self.left.copy_(left)
            self.right.copy_(right)


class Decay(ABC):
    """What explicit regularisers share: what they act on, `loss` and `step`.

    Args:
        on: a module, whose matrices are chosen by `targets` and `exclude` (embeddings and heads too, unless excluded);
            or a sequence of attention products and pairs (B, A) of parameters.
        strength: λ ≥ 0.
        targets: glob patterns of a module's matrices, see `eckart.nn.select`; None means all.
        exclude: glob patterns of matrices to leave alone.
    """

    def __init__(
        self,
        on: nn.Module | Sequence[AttentionProduct | Pair],
        strength: float,
        targets: Patterns = None,
        exclude: Patterns = None,
    ) -> None:
        if not 0 <= strength < math.inf:
            raise ValueError(f"strength must be a finite number of at least 0, got {strength}")
        self.strength = strength
        self._dense: list[Matrix] = []
        self._factored: list[FactoredLinear | AttentionProduct | _Held] = []
        if isinstance(on, nn.Module):
            self._choose(matrices(on, targets, exclude))
        elif targets is not None or exclude is not None:
            raise ValueError("targets and exclude choose a module's matrices; give products or pairs already chosen")
        elif isinstance(on, AttentionProduct):
            raise TypeError("on is a single attention product: put it in a list")
        else:
            self._factored = [each if isinstance(each, AttentionProduct) else _Held(each) for each in on]
            self._refuse([str(p) for p in self._factored if isinstance(p, AttentionProduct) and p.frozen], FROZEN)
        if not self._dense and not self._factored:
            raise ValueError("on holds nothing to regularise; give a module, attention products or pairs (B, A)")

    def loss(self) -> Tensor:  # ()
        """The penalty as it is now, to be added to the loss: a float64 scalar that autograd follows."""
        terms = [self._dense_loss(matrix.weight()).sum() for matrix in self._dense]
        terms += [self._factored_loss(pair.left, pair.right).sum() for pair in self._pairs()]
        return self.strength * torch.stack(terms).sum()

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Shrink the weights in place, after the optimizer's step.

        Args:
            rate: η, the optimizer's learning rate, ≥ 0: a step shrinks by η·strength.

        Raises:
            ValueError: rate is negative, or heads that share keys were given one by one.
        """
        if not 0 <= rate < math.inf:
            raise ValueError(f"rate must be a finite number of at least 0, got {rate}")
        pairs = list(self._pairs())
        if any(pair.shared for pair in pairs):
            raise ValueError(
                "these attention products share keys or values between heads, so that shrinking one changes another; "
                "take the joint products of attention_products(model, grouped=True)"
            )
        for matrix in self._dense:
            owner = getattr(matrix.module, matrix.parameter)
            owner.copy_(matrix.as_parameter(self._dense_step(matrix.weight(), rate * self.strength)))
        for pair in pairs:
            pair.write(*self._factored_step(pair.left, pair.right, rate * self.strength))

    def _choose(self, chosen: Sequence[Matrix]) -> None:
        computed = [m.name for m in chosen if not m.stored and not isinstance(m.module, FactoredLinear)]
        self._refuse(computed, "compute their weight at each read")
        self._refuse([m.name for m in chosen if not m.weight().requires_grad], FROZEN)
        self._dense = [m for m in chosen if m.stored]
        self._factored = [m.module for m in chosen if isinstance(m.module, FactoredLinear)]

    def _refuse(self, names: list[str], why: str) -> None:
        if names:
            raise ValueError(f"{len(names)} matrices {why}, such as {names[0]}; leave them out (of a module: exclude=)")

    def _pairs(self) -> Iterator[AttentionProduct | _Held]:
        """The products, with the factors that their modules hold now."""
        return (_Held((each.B, each.A)) if isinstance(each, FactoredLinear) else each for each in self._factored)

    @abstractmethod
    def _dense_loss(self, W: Tensor) -> Tensor: ...

    @abstractmethod
    def _dense_step(self, W: Tensor, step: float) -> Tensor: ...

    @abstractmethod
    def _factored_loss(self, B: Tensor, A: Tensor) -> Tensor: ...

    @abstractmethod
    def _factored_step(self, B: Tensor, A: Tensor, step: float) -> Pair: ...


class NuclearDecay(Decay):
    """λ Σ‖W‖_*: every step takes η·λ off every singular value, so that small ones vanish.

    Args:
        on: a module, or attention products and pairs (B, A) of parameters.
        strength: λ ≥ 0.
        targets: glob patterns of a module's matrices; None means all.
        exclude: glob patterns of matrices to leave alone.

    Raises:
        ValueError: strength is negative, there is nothing to act on, a pattern matches nothing, or a chosen matrix (or
            a factor of a product) is frozen, or a chosen matrix computed at each read.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> _ = model[0].weight.data.copy_(torch.diag(torch.tensor([3.0, 0.5])))
        >>> decay = NuclearDecay(model, strength=10.0)
        >>> decay.loss().item()
        35.0
        >>> decay.step(rate=0.1)
        >>> model[0].weight.diagonal().tolist()
        [2.0, 0.0]
    """

    def _dense_loss(self, W: Tensor) -> Tensor:
        return nuclear_norm(W)

    def _dense_step(self, W: Tensor, step: float) -> Tensor:
        return prox_nuclear(W, step)

    def _factored_loss(self, B: Tensor, A: Tensor) -> Tensor:
        return product_nuclear_norm(B, A)

    def _factored_step(self, B: Tensor, A: Tensor, step: float) -> Pair:
        return shrink_product(B, A, step)


class FrobeniusDecay(Decay):
    """½λ Σ‖W‖_F²: weight decay on the maps that a network computes, also where they are stored as factors.

    The factors' step is explicit: η·λ·max(‖A‖², ‖B‖²) (spectral norms) should be well below 1, as it is in practice.

    Args:
        on: a module, or attention products and pairs (B, A) of parameters.
        strength: λ ≥ 0.
        targets: glob patterns of a module's matrices; None means all.
        exclude: glob patterns of matrices to leave alone.

    Raises:
        ValueError: as for `NuclearDecay`.

    Example:
        >>> layer = FactoredLinear(torch.tensor([[2.0]]), torch.tensor([[3.0]]))
        >>> decay = FrobeniusDecay(nn.Sequential(layer), strength=0.1)
        >>> round(decay.loss().item(), 4)  # 0.05 · 6²
        1.8
        >>> decay.step(rate=0.1)
        >>> round(layer.B.item(), 4), round(layer.A.item(), 4)  # 2 (1 − 0.01 · 9), 3 (1 − 0.01 · 4)
        (1.82, 2.88)
    """

    def _dense_loss(self, W: Tensor) -> Tensor:
        return W.double().square().sum() / 2

    def _dense_step(self, W: Tensor, step: float) -> Tensor:
        return W * (1 - step)

    def _factored_loss(self, B: Tensor, A: Tensor) -> Tensor:
        B, A = B.double(), A.double()
        return ((B.mT @ B) * (A @ A.mT)).sum() / 2

    def _factored_step(self, B: Tensor, A: Tensor, step: float) -> Pair:
        return B - step * B @ (A @ A.mT), A - step * (B.mT @ B) @ A
