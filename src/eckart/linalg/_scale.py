"""Scale matrices so that products of them neither overflow nor underflow."""

import torch
from torch import Tensor

from eckart.linalg._check import peak


def tame(name: str, W: Tensor, dtype: torch.dtype) -> Tensor:
    """`W` in `dtype`, finite, and divided by its largest entry where products could leave the range of the dtype.

    One pass and one host read. For results that do not depend on the scale of `W` (subspaces, ratios).
    """
    if comfortable(peak(name, W), dtype):
        return W.to(dtype)
    return unit_peak(W.double(), dim=(-2, -1)).to(dtype)


def comfortable(largest: Tensor | float, dtype: torch.dtype) -> Tensor | bool:
    """Whether products of matrices with this largest magnitude stay in the range of `dtype`; True for zero."""
    edge = 1e-30 if dtype == torch.float32 else 1e-290
    return (largest == 0) | ((largest > edge) & (largest < 1 / edge))


def unit_peak(W: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """`W` with its largest magnitude along `dim` made 1; zeros stay zero."""
    peak = W.abs().amax(dim, keepdim=True)
    return W / torch.where(peak > 0, peak, 1.0)
