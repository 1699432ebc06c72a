"""One adapter of one matrix: the change Δ (m, n) that it adds to the frozen weight, its scale, magnitude and bias.

    y = c ∘ (W + Δ) x + b + b′,     Δ = s·(P + F),     c = 1, or μ / ‖W + Δ‖_row with a trained magnitude μ (DoRA)

A shape says what P (m, n) is made of. Where P is a product B·A of few columns, `pair` gives it, as a differentiable
function of whatever parameters the shape has, and every layer, merge and file works on pairs from there on. F = B₀·A₀
is frozen: the start of a spectral init with its sign turned, so that Δ = 0 at first, to the last bit in any dtype, and
the base weight stays as it is (PiSSA and its kin change the base instead), or the pairs that ReLoRA has finished.

Paper: LoRA 2106.09685, DoRA 2402.09353. PEFT takes a start out of the base weight; F is ours.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from eckart.adapters.settings import Settings
from eckart.nn import Matrix
from eckart.nn.files import LoraPair


class Adapter(nn.Module, ABC):
    """What all shapes share; a shape adds its parameters in `__init__` and says what they make in `pair` or `delta`.

    Args:
        matrix: The matrix that is adapted; its shape, dtype and device are taken, not its values.
        rank: r of the shape, at least 1.
        scale: s.
        settings: What the adapter was made with, one object for all its layers; `settings.options` holds what the
            method alone knows.
        dtype: Of the parameters.
        device: Of the parameters.

    Raises:
        ValueError: The rank does not fit the matrix.
    """

    factors: tuple[str, ...] = ()  # the names of its parameters, in the order of the product
    thin: bool = True  # whether `pair` gives one
    bounded: ClassVar[bool] = True  # whether its rank must be at most min(m, n)

    frozen_B: Tensor | None  # (m, k)
    frozen_A: Tensor | None  # (k, n)

    def __init__(
        self, matrix: Matrix, rank: int, scale: float, settings: Settings, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.shape = matrix.shape  # (m, n)
        self.stack = matrix.stack
        self.kind = matrix.kind
        self.rank = rank
        self.scale = scale
        self.settings = settings
        self.magnitude: nn.Parameter | None = None  # (m,) μ
        self.bias: nn.Parameter | None = None  # (m,) b′
        self.dtype, self.device = dtype, device  # that its parameters are made with
        self.register_buffer("frozen_B", None)
        self.register_buffer("frozen_A", None)

    @staticmethod
    def share(found: list[Matrix], settings: Settings) -> None:
        """Called once, before the first adapter of a name is made: note in `settings.options` what all must know."""

    @abstractmethod
    def pair(self) -> tuple[Tensor, Tensor] | None:  # (m, r), (r, n), with a leading (stack,) for a stack
        """B and A with P = B·A, differentiable in the parameters; None for a shape that is no thin product."""

    def delta(self) -> Tensor:  # (m, n), or (stack, m, n)
        """Δ as a dense matrix, differentiable."""
        terms = self.terms()
        if terms is None:
            raise NotImplementedError(f"{type(self).__name__} has no pair: it must say what its delta is")
        P, *F = [B @ A for B, A, _ in terms]
        return self.scale * sum(F, P)

    def times(self, x: Tensor) -> Tensor | None:  # (..., n) -> (..., m)
        """x Δᵀ where a shape without a pair has a cheaper way than the dense Δ; None where it has none."""

    def terms(self) -> list[LoraPair] | None:
        """Δ as a sum of thin products s · B A, the trained one first; None where `pair` is."""
        pair = self.pair()
        if pair is None:
            return None
        own = [LoraPair(*pair, self.scale)]
        if self.frozen_B is None or self.frozen_A is None:
            return own
        return [*own, LoraPair(self.frozen_B, self.frozen_A, self.scale)]

    @torch.no_grad()
    def freeze(self, sign: float) -> None:
        """Add sign · B A, as the pair is now, to the frozen part: −1 takes a start out, +1 keeps a pair."""
        pair = self.pair()
        if pair is None:
            raise TypeError(f"{type(self).__name__} is no thin product, so no part of it can be frozen as one")
        B, A = sign * pair[0], pair[1]
        if self.frozen_B is not None and self.frozen_A is not None:
            B, A = torch.cat((self.frozen_B, B), dim=-1), torch.cat((self.frozen_A, A), dim=-2)
        self.frozen_B, self.frozen_A = B.detach().clone(), A.detach().clone()

    def trained(self) -> list[nn.Parameter]:
        """The parameters that train: the method's factors, and magnitude and bias where there are any."""
        chosen = self.settings.trains or self.factors
        own = self._parameters  # what `getattr` would search for, slowly: a switch asks all adapters
        return [p for p in map(own.get, (*chosen, "magnitude", "bias")) if p is not None]

    def make(self, *size: int) -> nn.Parameter:
        """A parameter of zeros, with a leading dimension for a stack of matrices."""
        stack = (self.stack,) if self.stack > 1 else ()
        return nn.Parameter(torch.zeros(*stack, *size, dtype=self.dtype, device=self.device))

    def extra_repr(self) -> str:
        parts: dict[str, Any] = {"rank": self.rank, "scale": round(self.scale, 6)}
        parts |= {"dropout": self.settings.dropout} if self.settings.dropout else {}
        parts |= {"magnitude": True} if self.magnitude is not None else {}
        parts |= {"frozen_rank": self.frozen_B.shape[-1]} if self.frozen_B is not None else {}
        return ", ".join(f"{key}={value}" for key, value in parts.items())
