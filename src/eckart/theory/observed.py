"""A matrix seen in part, as a user has it: what is checked, how its columns are put on one scale, what is held out.

A column is centred on the mean of its observed entries and divided by

    s_j = √((n_j v_j + 10 a_j²) / (n_j + 10)),

v_j their variance, a_j the largest deviation among the n_j: the standard deviation, but larger for a column that is
constant except for a few entries, which would otherwise become outliers. Units of a column cancel.

Paper: none; the guard is ours.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from eckart.linalg import working_dtype

GUARD = 10.0  # as many entries as the largest deviation counts for


class Scale(NamedTuple):
    """What was taken off each column, and what it was divided by: X = mean + scale · standardised."""

    mean: Tensor  # (n,)
    scale: Tensor  # (n,)


def prepare(
    observed: Tensor,  # (m, n)
    mask: Tensor,  # (m, n)
) -> tuple[Tensor, Tensor]:  # (m, n), (m, n)
    """Check a matrix and its mask; the matrix in the dtype to compute in, 0 where it was not observed.

    Args:
        observed: any real dtype; what it holds where it was not observed does not matter, NaN included.
        mask: True or 1 where it was observed.

    Returns:
        matrix, boolean mask.

    Raises:
        TypeError: observed is complex or no tensor.
        ValueError: no matrices of one shape, a mask that is not 0 or 1 or has an empty row or column, or entries that
            are observed and not finite.

    Example:
        >>> prepare(torch.tensor([[1, 7], [2, 3]]), torch.tensor([[1, 0], [1, 1]]))[0].tolist()
        [[1.0, 0.0], [2.0, 3.0]]
    """
    for name, value in (("observed", observed), ("mask", mask)):
        if not isinstance(value, Tensor) or value.is_complex():
            told = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} must be a real torch.Tensor, got {told}; wrap it with torch.as_tensor")
    if observed.ndim != 2 or observed.shape != mask.shape:
        raise ValueError(
            f"observed {tuple(observed.shape)} and mask {tuple(mask.shape)} must be matrices of one shape; the mask is "
            "True where an entry was observed (~observed.isnan() if the others are NaN)"
        )
    if mask.dtype != torch.bool:
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError(f"mask {tuple(mask.shape)} must hold True and False, or 1 and 0; use mask > 0 for weights")
        mask = mask == 1
    _require_entries(mask)
    dtype = working_dtype(observed.dtype) if observed.is_floating_point() else torch.float32
    matrix = torch.where(mask, observed.to(dtype), 0)
    bad = int((~matrix.isfinite()).sum())
    if bad:
        raise ValueError(
            f"observed {tuple(observed.shape)} has {bad} entries that the mask says are observed and that are NaN or "
            "infinite; take them out of the mask (mask & observed.isfinite())"
        )
    return matrix, mask


def seen_part(
    observed: Tensor,  # (m, n)
    mask: Tensor,  # (m, n)
) -> Tensor:  # (m, n)
    """mask∘Φ: what was observed, and 0 elsewhere, whatever stands there. Rows and columns may be empty.

    Args:
        observed: Φ.
        mask: True or 1 where it was observed.

    Returns:
        A matrix of observed's dtype.

    Raises:
        ValueError: the shapes differ, or nothing is observed.

    Example:
        >>> seen_part(torch.tensor([[1.0, float("nan")]]), torch.tensor([[1, 0]])).tolist()
        [[1.0, 0.0]]
    """
    if observed.shape != mask.shape:
        raise ValueError(f"observed {tuple(observed.shape)} and mask {tuple(mask.shape)} must have one shape")
    _require_any(mask)
    return torch.where(mask.bool(), observed, 0)


def standardise(
    matrix: Tensor,  # (m, n)
    mask: Tensor,  # (m, n)
) -> tuple[Tensor, Scale]:
    """Centre and scale each column by what was observed of it.

    Args:
        matrix: from `prepare`.
        mask: boolean. A column without entries keeps mean 0 and scale 1.

    Returns:
        The standardised matrix, 0 where it was not observed; and its `Scale`.

    Example:
        >>> X, (mean, scale) = standardise(torch.tensor([[1.0], [3.0], [0.0]]), torch.tensor([[True], [True], [False]]))
        >>> X.flatten().tolist(), mean.item(), scale.item()
        ([-1.0, 1.0, 0.0], 2.0, 1.0)
    """
    count = mask.sum(dim=0)
    mean = torch.where(mask, matrix, 0).sum(dim=0) / count.clamp(min=1)
    centred = torch.where(mask, matrix - mean, 0)
    largest = centred.abs().amax(dim=0)
    unit = torch.where(largest > 0, largest, 1)  # so that squares neither overflow nor vanish
    square = ((centred / unit).square().sum(dim=0) + GUARD) / (count + GUARD)
    scale = torch.where(largest > 0, unit * square.sqrt(), 1)
    return centred / scale, Scale(mean, scale)


def hold_out(
    mask: Tensor,  # (m, n)
    share: float,
    generator: torch.Generator | None = None,
) -> Tensor:  # (m, n)
    """Draw a share of the observed entries to be held out, at least one and never all.

    Args:
        mask: boolean, with at least two entries.
        share: 0 < share < 1.
        generator: source of randomness, on the mask's device; None takes a fixed seed.

    Returns:
        A boolean mask within `mask`.

    Example:
        >>> held = hold_out(torch.ones(10, 10, dtype=torch.bool), 0.2)
        >>> int(held.sum())
        20
    """
    generator = torch.Generator(device=mask.device).manual_seed(0) if generator is None else generator
    places = mask.flatten().nonzero().flatten()
    order = torch.randperm(len(places), generator=generator, device=mask.device)
    held = torch.zeros_like(mask).flatten()
    count = min(max(1, round(share * len(places))), len(places) - 1)
    held[places[order[:count]]] = True
    return held.view_as(mask)


def root_mean_square(
    error: Tensor,  # (m, n)
    mask: Tensor,  # (m, n)
) -> Tensor:  # ()
    """The root mean square of a matrix over the entries of a mask.

    Args:
        error: a difference of matrices.
        mask: boolean.

    Returns:
        A scalar tensor; no host sync.

    Example:
        >>> root_mean_square(torch.tensor([[3.0, 100.0]]), torch.tensor([[True, False]])).item()
        3.0
    """
    return (torch.where(mask, error, 0).square().sum() / mask.sum()).sqrt()


def _require_any(mask: Tensor) -> None:
    if not mask.any():
        raise ValueError(f"mask {tuple(mask.shape)} has no entry: nothing is observed; mark what is with True")


def _require_entries(mask: Tensor) -> None:
    _require_any(mask)
    for name, dim, drop in (("rows", 1, "[keep]"), ("columns", 0, "[:, keep]")):
        empty = (~mask.any(dim=dim)).nonzero().flatten().tolist()
        if empty:
            shown = ", ".join(map(str, empty[:8])) + (", …" if len(empty) > 8 else "")
            raise ValueError(
                f"mask {tuple(mask.shape)} has {len(empty)} {name} without an observed entry ({shown}), and nothing "
                f"can be said about them; leave them out: keep = mask.any(dim={dim}), observed{drop}, mask{drop}"
            )
