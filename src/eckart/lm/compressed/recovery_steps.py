"""What both ways of recovery share: the order of the batches, the rate, and the state that held-out text likes best.

Paper: none.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Trained = tuple[int, int, list[dict[str, Any]]]  # steps, parameters, history


class Best:
    """The values of some parameters at which a loss was least.

    Args:
        parameters: Whose values are kept.
        loss: The loss at their values now.

    Example:
        >>> p = nn.Parameter(torch.zeros(1))
        >>> best = Best([p], 3.0)
        >>> _ = p.data.fill_(7)
        >>> best.offer(4.0), best.restore(), p.item()
        (False, None, 0.0)
    """

    def __init__(self, parameters: Iterable[nn.Parameter], loss: float) -> None:
        self.parameters = list(parameters)
        self.loss = loss
        self._kept = [p.detach().clone() for p in self.parameters]

    def offer(self, loss: float) -> bool:
        """Keep the values of now if this is their loss and it is the least; whether it is."""
        better = loss < self.loss
        if better:
            self.loss = loss
            self._kept = [p.detach().clone() for p in self.parameters]
        return better

    @torch.no_grad()
    def restore(self) -> None:
        """Give the parameters the best values."""
        for p, kept in zip(self.parameters, self._kept, strict=True):
            p.copy_(kept)


def parameters_of(model: nn.Module, names: Collection[str]) -> list[nn.Parameter]:
    """The floating-point parameters of some layers, each once."""
    found = {id(p): p for name in names for p in model.get_submodule(name).parameters() if p.is_floating_point()}
    return list(found.values())


def endless(count: int, seed: int) -> Iterator[int]:
    """The numbers below `count` over and over, in another order each time."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def rate(step: int, steps: int) -> float:
    """The share of the largest learning rate: up over the first 5 % of the steps, then a cosine down to 0."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def require_finite(loss: Tensor, step: int, lr: float) -> None:
    """End a run whose loss is no number.

    Raises:
        RuntimeError: It is none.
    """
    if not bool(loss.isfinite()):
        raise RuntimeError(f"recovery: the loss is no number at step {step}; give a smaller lr than {lr:g}")


def require_positive(**numbers: float | int) -> None:
    """Refuse numbers that are not above 0, by name.

    Raises:
        ValueError: One is not.
    """
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{name}: {value!r}; give a number above 0")


def clip(parameters: Sequence[nn.Parameter]) -> None:
    """Bound the norm of all gradients together by 1."""
    nn.utils.clip_grad_norm_(parameters, 1.0)
