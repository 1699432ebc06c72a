"""An optimizer around any torch optimizer, which gives it other gradients for the pairs B, A of an adapted model.

For a matrix W + s·B·A with G = ∂loss/∂W, the gradients of the factors are g_B = s G Aᵀ and g_A = s Bᵀ G. The wrapper
replaces them for the length of the inner optimizer's step, whose state, groups and rates are the wrapper's own:
schedules of the learning rate, checkpoints and trainers see one ordinary optimizer, and a checkpoint fits with and
without the wrapper.

Adapters without such a pair (VeRA, LoHa, Deep LoRA), and what is no adapter, keep their gradients. Everything stays on
the device; the r×r arithmetic is float32 or wider.
Paper: none.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from eckart.adapters.adapter import Adapter
from eckart.adapters.layers.place import places


class Pair(NamedTuple):
    """The two factors of one matrix, and the scale s of their product."""

    B: nn.Parameter  # (m, r), or (stack, m, r)
    A: nn.Parameter  # (r, n), or (stack, r, n)
    scale: float


class FactorOptimizer(Optimizer):
    """What the wrappers share; one says in `rewrite` what the gradients of a pair become.

    Args:
        inner: The optimizer that steps, with the model's parameters in it, from `param_groups` for example.
        model: The model with adapters. What `shrink` or `restart` does to them is followed; for adapters that come
            later make another wrapper.
        damping: λ, added to the diagonal of BᵀB and AAᵀ.

    Raises:
        ValueError: No factor of a pair is in the inner optimizer, or damping is negative.
        TypeError: A factor is sharded: its Gram matrix would need other processes.
    """

    def __init__(self, inner: Optimizer, model: nn.Module, damping: float) -> None:
        if not damping >= 0:
            raise ValueError(f"damping: {damping!r}; give λ of at least 0")
        self.inner = inner
        self.damping = damping
        super().__init__(inner.param_groups, dict(inner.defaults))
        self._link()
        inner.register_load_state_dict_post_hook(lambda _: self._link())  # which gives it other groups and states
        self._adapters = [made for place in places(model).values() for made in place.held.values() if _paired(made)]
        if not self.pairs:
            raise ValueError(
                "model: the inner optimizer holds no factor of a pair B·A; make it of this model's parameters after "
                "adapt, with a method whose factors are B and A (lora, dora, pissa, …)"
            )
        for pair in self.pairs:
            if hasattr(pair.B, "full_tensor") or hasattr(pair.A, "full_tensor"):
                raise TypeError(
                    "model: its factors are sharded, and a pair's gradients need whole factors; use the inner "
                    "optimizer alone, with param_groups(plus=16) for example"
                )

    @property
    def pairs(self) -> list[Pair]:
        """The factors that the inner optimizer holds, as they are now."""
        return [Pair(made.B, made.A, made.scale) for made in self._held()]

    def _held(self) -> list[Any]:
        """The adapters of which the inner optimizer holds a factor."""
        own = {id(parameter) for group in self.param_groups for parameter in group["params"]}
        adapters: list[Any] = self._adapters
        return [made for made in adapters if id(made.B) in own or id(made.A) in own]

    def trains(self) -> list[tuple[bool, bool]]:
        """Whether B and A of each pair train; where neither does now, whether they do once the adapter acts."""
        found = []
        for made in self._held():
            now = made.B.requires_grad, made.A.requires_grad
            later = {id(parameter) for parameter in made.trained()}
            found.append(now if any(now) else (id(made.B) in later, id(made.A) in later))
        return found

    def require_both(self) -> None:
        """Refuse a pair of which one factor does not train."""
        if not all(map(all, self.trains())):
            raise ValueError(
                f"model: a factor does not train, and {type(self).__name__} moves both; use LoraFA for a fixed A"
            )

    @abstractmethod
    def rewrite(self, pairs: list[Pair]) -> Iterable[tuple[Tensor | None, Tensor | None]]:
        """(g_B, g_A) of each pair from what `.grad` says; None lets a factor rest in this step."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the inner optimizer with the pairs' own gradients; `.grad` is as before afterwards.

        Args:
            closure: Computes the loss and its gradients anew, once, before the gradients are looked at.

        Returns:
            What the closure gave, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        pairs = [pair for pair in self.pairs if pair.B.grad is not None or pair.A.grad is not None]
        before = [(parameter, parameter.grad) for pair in pairs for parameter in (pair.B, pair.A)]
        try:
            for pair, (g_B, g_A) in zip(pairs, list(self.rewrite(pairs)), strict=True):
                pair.B.grad = None if g_B is None else g_B.to(pair.B.dtype)
                pair.A.grad = None if g_A is None else g_A.to(pair.A.dtype)
            self.inner.step()
        finally:
            for parameter, grad in before:
                parameter.grad = grad
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the inner optimizer."""
        if hasattr(self, "_adapters"):  # the groups of the start are in it already
            self.inner.add_param_group(param_group)

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` of the wrapper or of the inner optimizer gave."""
        self.inner.load_state_dict(state_dict)
        self._link()

    def _link(self) -> None:
        self.state, self.param_groups = self.inner.state, self.inner.param_groups


def _paired(adapter: Adapter) -> bool:
    """Whether its pair is made of two parameters themselves."""
    return all(isinstance(factor, nn.Parameter) for factor in adapter.pair() or (None,))


def wide(*tensors: Tensor) -> list[Tensor]:
    """Detached, in float32 or wider."""
    return [each.detach().to(torch.promote_types(each.dtype, torch.float32)) for each in tensors]


def batched(kernel: Callable[..., Tensor], *columns: list[Tensor]) -> list[Tensor]:
    """Apply a kernel of small matrices to many of them at once, those of equal shape, dtype and device together.

    Args:
        kernel: As many tensors (k, r, r) as there are columns → one such tensor.
        columns: Lists of equal length of tensors (..., r, r), the same shape in each row.

    Returns:
        One tensor for each row, shaped as the row's first.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, first in enumerate(columns[0]):
        groups.setdefault((first.shape[-2:], first.dtype, first.device), []).append(index)
    results: dict[int, Tensor] = {}
    for rows in groups.values():
        flat = [torch.cat([column[row].reshape(-1, *column[row].shape[-2:]) for row in rows]) for column in columns]
        shapes = [columns[0][row].shape for row in rows]
        sizes = [shape[:-2].numel() for shape in shapes]
        for row, shape, part in zip(rows, shapes, kernel(*flat).split(sizes), strict=True):
            results[row] = part.reshape(shape)
    return [results[index] for index in range(len(columns[0]))]
