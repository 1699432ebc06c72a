"""Linear layers of other libraries whose weight is kept in few bits, told by what they have: nothing is imported.

| told by | stored as | made by |
|---|---|---|
| a weight with a `dequantize` of its own | a tensor subclass of shape (m, n) | torchao (int8 weight-only and others) |
| a weight with a `quant_state` | packed bytes, absolute maxima of blocks | bitsandbytes, NF4 and FP4 |
| a weight with `CB` and `SCB` | int8 rows and their absolute maxima | bitsandbytes, LLM.int8 |

Paper: QLoRA 2305.14314 (NF4), LLM.int8 2208.07339.
"""

import sys
from typing import Any

from torch import Tensor, nn

from eckart.nn.matrices import Matrix


class QuantizedMatrix(Matrix):
    """A quantised layer's matrix: `weight` gives its values in floating point, a new tensor at each call."""

    @property
    def stored(self) -> bool:
        return False

    def weight(self) -> Tensor:  # (m, n)
        return dequantized(self.module)


def is_quantized(module: nn.Module) -> bool:
    """Whether the module is a linear layer with a quantised weight that `dequantized` can read.

    Example:
        >>> is_quantized(nn.Linear(4, 4))
        False
    """
    W = module._parameters.get("weight")
    if W is None or not isinstance(getattr(module, "in_features", None), int):
        return False
    if getattr(W, "quant_state", None) is not None or _int8_rows(module) is not None:
        return True
    return type(W).dequantize is not Tensor.dequantize and W.is_floating_point()


def dequantized(module: nn.Module) -> Tensor:  # (m, n)
    """The weight of a quantised linear layer in floating point, as the layer multiplies with it.

    Args:
        module: A layer of which `is_quantized` is true.

    Returns:
        (out, in), detached, in a new tensor.

    Raises:
        TypeError: The layer is not quantised in a way that is known.

    Example:
        >>> dequantized(nn.Linear(4, 4))
        Traceback (most recent call last):
        TypeError: module: Linear is not quantised in a way that is known; read its weight itself
    """
    W: Any = module._parameters.get("weight")
    if W is None or not is_quantized(module):
        raise TypeError(
            f"module: {type(module).__name__} is not quantised in a way that is known; read its weight itself"
        )
    if getattr(W, "quant_state", None) is not None:
        library = sys.modules[type(W).__module__.partition(".")[0]]  # it is loaded: the weight is one of its tensors
        return library.functional.dequantize_4bit(W.data, W.quant_state).detach()
    rows = _int8_rows(module)
    if rows is not None:
        return rows[0].detach().float() * (rows[1].detach().float() / 127).unsqueeze(-1)
    return W.dequantize().detach()


def quantized_matrices(model: nn.Module) -> dict[str, Matrix]:
    """The matrices of the quantised linear layers of a model, by name.

    Example:
        >>> quantized_matrices(nn.Sequential(nn.Linear(4, 4)))
        {}
    """
    return {
        path: QuantizedMatrix(path, module, "weight", "linear", _sizes(module))
        for path, module in model.named_modules()
        if is_quantized(module)
    }


def _sizes(module: Any) -> tuple[int, int]:
    return module.out_features, module.in_features


def _int8_rows(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """The int8 weight and the maxima of its rows, which the first call moves from the weight to the layer's `state`."""
    for holder in (module._parameters.get("weight"), getattr(module, "state", None)):
        CB, SCB = getattr(holder, "CB", None), getattr(holder, "SCB", None)
        if isinstance(CB, Tensor) and isinstance(SCB, Tensor):
            return CB, SCB
    return None
