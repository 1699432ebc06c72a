"""What every function of a spectrum asks of its argument."""

import torch
from torch import Tensor

from eckart.linalg._check import working_dtype


def as_spectrum(S: Tensor, name: str = "S") -> Tensor:  # (..., k) -> (..., k) float64
    """`S` in float64, after checking that it holds finite, non-negative, descending values (one host read)."""
    if not isinstance(S, Tensor) or not S.is_floating_point():
        got = S.dtype if isinstance(S, Tensor) else type(S).__name__
        raise TypeError(f"{name} must be a floating-point torch.Tensor of singular values, got {got}")
    if S.ndim == 0 or S.shape[-1] == 0:
        raise ValueError(f"{name} must hold singular values along its last dimension, got shape {tuple(S.shape)}")
    values = S.double()
    fine = torch.isfinite(values).all() & (values[..., -1] >= 0).all() & (values.diff(dim=-1) <= 0).all()
    if not bool(fine):
        what = "NaN or infinite values" if not bool(torch.isfinite(values).all()) else "negative or ascending values"
        raise ValueError(
            f"{name} of shape {tuple(S.shape)} has {what}; singular values are finite, at least 0 and descending "
            f"along the last dimension (take them from singular_values(W))"
        )
    return values


def require_shape(shape: tuple[int, int], count: int, *, whole: bool) -> tuple[int, int]:
    """(m, n) of the matrix whose `count` singular values are given: all of them when `whole`, else at most all."""
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"shape must be the matrix's (m, n), got {tuple(shape)}; pass W.shape[-2:]")
    m, n = int(shape[0]), int(shape[1])
    if count > min(m, n) or (whole and count != min(m, n)):
        need = "all" if whole else "at most"
        raise ValueError(f"S must hold {need} {min(m, n)} singular values of the {m}×{n} matrix, got {count}")
    return m, n


def rounding_of(dtype: torch.dtype, eps: float | None) -> float:
    """The relative rounding of a matrix's entries: `eps`, or that of the dtype that its spectrum was computed in."""
    if eps is not None and not eps >= 0:
        raise ValueError(f"eps must be at least 0, got {eps}")
    return torch.finfo(working_dtype(dtype)).eps if eps is None else eps
