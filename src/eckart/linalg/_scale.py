"""Scale matrices so that products of them neither overflow nor underflow."""

import torch
from torch import Tensor

from eckart.linalg._check import require_finite


def tame(name: str, W: Tensor, dtype: torch.dtype) -> Tensor:
    """`W` in `dtype`, finite, and divided by its largest entry where products could leave the range of the dtype.

    One pass and one host read. For results that do not depend on the scale of `W` (subspaces, ratios).
    """
    # A transposed view is read in the order it lies in memory (30 × faster).
    low, high = (W.mT if W.mT.is_contiguous() else W).aminmax()
    peak = float(torch.maximum(-low, high))
    edge = 1e-30 if dtype == torch.float32 else 1e-290
    if edge < peak < 1 / edge or peak == 0:
        return W.to(dtype)
    require_finite(name, W)
    return unit_peak(W.double(), dim=(-2, -1)).to(dtype)


def unit_peak(W: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """`W` with its largest magnitude along `dim` made 1; zeros stay zero."""
    peak = W.abs().amax(dim, keepdim=True)
    return W / torch.where(peak > 0, peak, 1.0)
