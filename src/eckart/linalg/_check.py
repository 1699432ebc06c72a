"""What every function of `linalg` asks of its arguments, and the dtype it computes in."""

import math

import torch
from torch import Tensor


def require_matrix(name: str, W: Tensor) -> None:
    """Raise unless `W` is a non-empty floating-point tensor of shape (..., m, n)."""
    if not isinstance(W, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(W).__name__}; wrap it with torch.as_tensor")
    if not W.is_floating_point():
        raise TypeError(
            f"{name} must be real floating point, got {W.dtype} of shape {tuple(W.shape)}; use {name}.float()"
        )
    if W.ndim < 2:
        raise ValueError(
            f"{name} must be a matrix or a batch of them (..., m, n), got shape {tuple(W.shape)}; "
            f"reshape a vector to (m, 1) or (1, n)"
        )
    if W.shape[-1] == 0 or W.shape[-2] == 0:
        raise ValueError(f"{name} has no entries: shape {tuple(W.shape)}; leave empty matrices out")


def require_finite(name: str, W: Tensor) -> None:
    """Raise unless every entry of `W` is finite (one pass and one host read, no copy of `W`)."""
    if W.numel():
        peak(name, W)


def peak(name: str, W: Tensor) -> float:
    """The largest magnitude in `W`, after checking that every entry is finite; one pass and host read."""
    largest = float(magnitude(W.detach()))
    if not math.isfinite(largest):
        bad = int((~torch.isfinite(W)).sum())
        raise ValueError(
            f"{name} of shape {tuple(W.shape)} has {bad} entries that are NaN or infinite; "
            f"repair or leave out this matrix (torch.nan_to_num replaces such entries)"
        )
    return largest


def magnitude(W: Tensor) -> Tensor:
    """The largest magnitude in `W` as a scalar tensor, 0 of an empty batch, NaN where an entry is NaN; no copy."""
    if not W.numel():
        return W.new_zeros(())
    # NaN propagates through both. A transposed view is read in the order it lies in memory, 30 × faster.
    low, high = (W.mT if W.ndim > 1 and W.mT.is_contiguous() else W).aminmax()
    return torch.maximum(-low, high)


def require_rank(rank: int, W: Tensor, name: str = "rank") -> None:
    """Raise unless `rank` is an integer from 1 to min(m, n) of `W` (..., m, n)."""
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise TypeError(f"{name} must be an int, got {rank!r} ({type(rank).__name__})")
    limit = min(W.shape[-2:])
    if not 1 <= rank <= limit:
        raise ValueError(f"{name} must be from 1 to {limit} for a matrix of shape {tuple(W.shape)}, got {rank}")


def require_fraction(name: str, value: float) -> None:
    """Raise unless 0 ≤ `value` ≤ 1."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number from 0 to 1, got {value!r} ({type(value).__name__})")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be from 0 to 1, got {value}")


def require_count(name: str, value: int, low: int = 0) -> None:
    """Raise unless `value` is an integer of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r} ({type(value).__name__})")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to factorise in: float64 stays, every other float becomes float32.

    Example:
        >>> working_dtype(torch.bfloat16), working_dtype(torch.float64)
        (torch.float32, torch.float64)
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def seeded(device: torch.device, generator: torch.Generator | None, seed: int = 0) -> torch.Generator:
    """The caller's generator, or a fresh one on `device` with a fixed seed, so that equal calls give equal bits."""
    return torch.Generator(device=device).manual_seed(seed) if generator is None else generator
