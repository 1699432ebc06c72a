"""The gradient of a loss in chosen weights, summed over batches, without touching anyone's `.grad`.

autograd is asked for exactly the chosen weights, frozen or not, however the model uses them. A hook takes each gradient
as soon as it is whole, adds it to a float32 sum (float64 for float64) and gives autograd zeros without memory in its
place: the model's gradients are never alive together. An anchor, a scalar zero added to the first observed outputs,
lets the gradient flow through a model all of whose parameters are frozen.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from eckart.nn.matrices import Matrix


class WeightGradients:
    """A context in which only the chosen weights require gradients; `sums` gathers them, batch after batch.

    Args:
        model: its parameters' `requires_grad` is restored at the end.
        matrices: the chosen ones, each with a parameter of its own.
        check: told the name and the sum so far after every gradient.

    Example:
        >>> from eckart.nn.matrices import matrices
        >>> model = nn.Linear(2, 1).requires_grad_(False)
        >>> with WeightGradients(model, matrices(model), lambda name, total: None) as gradients:
        ...     gradients.backward(model(torch.tensor([[1.0, 2.0]])).sum())
        >>> gradients.sums, model.weight.grad, model.weight.requires_grad
        ({'weight': tensor([[1., 2.]])}, None, False)
    """

    def __init__(self, model: nn.Module, matrices: Sequence[Matrix], check: Callable[[str, Tensor], None]) -> None:
        self.sums: dict[str, Tensor] = {}
        self.anchor = torch.zeros((), requires_grad=True)
        self._required = {parameter: parameter.requires_grad for parameter in model.parameters()}
        self._chosen = {matrix.name: getattr(matrix.module, matrix.parameter) for matrix in matrices}
        self._check = check
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> "WeightGradients":
        for parameter in self._required:
            parameter.requires_grad_(False)
        for name, parameter in self._chosen.items():
            parameter.requires_grad_(True)
            self._hooks.append(parameter.register_hook(lambda g, name=name: self._take(name, g)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        for parameter, required in self._required.items():
            parameter.requires_grad_(required)

    def anchored(self, name: str, out: Tensor) -> Tensor:
        """A matrix's output, with a graph behind it that ends in what autograd is asked for.

        That it requires a gradient is not enough: it may be that of inputs, as gradient checkpointing wants it.
        """
        return out if out.requires_grad and name in self._chosen else out + self.anchor

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to the sums."""
        torch.autograd.grad(loss, [self.anchor, *self._chosen.values()], allow_unused=True)

    def _take(self, name: str, g: Tensor) -> Tensor | None:
        with torch.no_grad():
            total = self.sums.get(name)
            if total is None:
                dtype = torch.float64 if g.dtype == torch.float64 else torch.float32
                total = self.sums[name] = torch.zeros(g.shape, dtype=dtype, device=g.device)
            total += g
            self._check(name, total)
            return None if g.is_sparse else g.new_zeros(()).expand_as(g)


def loss_of(output: Any, batch: Any, loss: Callable[[Any, Any], Tensor] | None) -> Tensor:
    """The scalar loss of a batch, checked.

    Args:
        output: what the model gave.
        batch: what it was given.
        loss: called with both; None takes the loss that the output carries.

    Raises:
        ValueError: there is no loss, or it is not a finite scalar that depends on the observed matrices.
        TypeError: it is not a tensor.

    Example:
        >>> loss_of(torch.ones(2, requires_grad=True), None, lambda output, batch: output.sum()).item()
        2.0
    """
    value = scalar_loss(output, batch, loss)
    if not math.isfinite(value.item()):
        raise ValueError(f"loss is {value.item()} on a batch: nothing can be observed of its gradient")
    if not value.requires_grad:
        raise ValueError("loss does not depend on any observed matrix: it was detached, or computed without gradients")
    return value


def scalar_loss(output: Any, batch: Any, loss: Callable[[Any, Any], Tensor] | None) -> Tensor:
    """The scalar loss of a batch, of which no gradient may be wanted.

    Args:
        output: what the model gave.
        batch: what it was given.
        loss: called with both; None takes the loss that the output carries.

    Raises:
        ValueError: there is no loss, or it is not a scalar.
        TypeError: it is not a tensor.

    Example:
        >>> scalar_loss({"loss": torch.tensor([2.0])}, None, None)
        tensor(2.)
    """
    value = loss(output, batch) if loss is not None else _carried(output)
    if value is None:
        raise ValueError(
            f"a loss is needed, and the model's {type(output).__name__} carries none: pass a function "
            "loss(output, batch) -> scalar, or give the batches labels"
        )
    if not isinstance(value, Tensor):
        raise TypeError(f"loss gave {type(value).__name__}, not a tensor")
    if value.numel() != 1:
        raise ValueError(f"loss gave a tensor of shape {tuple(value.shape)}, not a scalar: reduce it (mean or sum)")
    return value.reshape(())


def _carried(output: Any) -> Any:
    return output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
