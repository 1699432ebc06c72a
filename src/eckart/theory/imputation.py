"""softImpute: completion by a convex penalty, the baseline that a deep factorisation has to beat.

    minimise ½‖mask∘(Z − Φ)‖² + λ‖Z‖_*      by      Z ← S_λ(mask∘Φ + (1 − mask)∘Z),

S_λ shrinks the singular values by λ. λ goes down a path, each solution starts the next. With a rank r all but the
leading r singular values are dropped too, which makes it hard-thresholded SVD imputation as λ → 0.

Cost: one SVD of the m×n matrix a step.
Paper: Mazumder, Hastie, Tibshirani, "Spectral regularization algorithms for learning large incomplete matrices", JMLR
11 (2010). Columns are standardised first, and λ and r are chosen on held-out entries in `tuned_soft_impute`; ours.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eckart.linalg import top_singular_values, truncated_svd
from eckart.nn import Progress
from eckart.theory.observed import hold_out, prepare, root_mean_square, standardise

SHARES = tuple(0.8 * 0.8**k for k in range(16))  # of λ_max, above which Z = 0: 0.8 … 0.03


class Imputation(NamedTuple):
    """A completed matrix, the share of λ_max and the rank that were chosen, and the held-out error of that choice."""

    matrix: Tensor  # (m, n)
    share: float
    rank: int
    error: float


def soft_impute(
    observed: Tensor,  # (m, n)
    mask: Tensor,  # (m, n)
    shrinkages: Sequence[float],
    *,
    rank: int | None = None,
    steps: int = 100,
    tolerance: float = 1e-4,
) -> Iterator[tuple[float, Tensor]]:  # λ, (m, n)
    """Run softImpute down a path of shrinkages, each from the solution before it.

    Args:
        observed: Φ, centred as you like it; what it holds where it was not observed does not matter.
        mask: True or 1 where it was.
        shrinkages: λ ≥ 0, best from large to small.
        rank: keep at most this many singular values; None: all.
        steps: at most, for each λ.
        tolerance: stop when ‖Z' − Z‖² < tolerance² ‖Z‖².

    Yields:
        λ and its solution Z, one by one.

    Raises:
        ValueError: a negative shrinkage, or a mask or entries as `prepare` refuses them.

    Example:
        >>> observed = torch.tensor([[1.0, 2.0], [2.0, float("nan")]])
        >>> path = list(soft_impute(observed, ~observed.isnan(), [1.0, 0.1, 0.001], rank=1, steps=1000))
        >>> [round(Z[1, 1].item(), 1) for _, Z in path]  # 2/1 = 4/2 completes rank 1
        [1.0, 2.9, 4.0]
    """
    matrix, mask = prepare(observed, mask)
    if min(shrinkages, default=0) < 0:
        raise ValueError(f"shrinkages must not be negative, got {list(shrinkages)}")
    if rank is not None and not 1 <= rank <= min(matrix.shape):
        raise ValueError(f"rank must be from 1 to {min(matrix.shape)} for observed {tuple(matrix.shape)}, got {rank}")
    yield from _path(matrix, mask, shrinkages, rank, steps, tolerance)


def tuned_soft_impute(
    observed: Tensor,  # (m, n)
    mask: Tensor,  # (m, n)
    *,
    ranks: Sequence[int | None] = (None,),
    shares: Sequence[float] = SHARES,
    held_out: float = 0.1,
    steps: int = 100,
    tolerance: float = 1e-4,
    progress: Progress | None = None,
    generator: torch.Generator | None = None,
) -> Imputation:
    """softImpute with λ and rank chosen on held-out entries, then fitted to all that was observed.

    Args:
        observed: any real dtype and scale; its columns are standardised.
        mask: True or 1 where it was observed.
        ranks: to try; None is no bound.
        shares: λ to try, as shares of the λ above which Z = 0; from large to small.
        held_out: share of the observed entries to choose on.
        steps, tolerance: of `soft_impute`.
        progress: called with (done, total, label), in points of the grid.
        generator: of the held-out entries, on observed's device; None takes a fixed seed.

    Returns:
        An `Imputation`.

    Raises:
        ValueError: held_out not between 0 and 1, a rank out of range, or what `soft_impute` refuses.

    Example:
        >>> Phi = torch.outer(torch.arange(-9.5, 10), torch.arange(1.0, 16))
        >>> mask = torch.rand(20, 15, generator=torch.Generator().manual_seed(0)) < 0.6
        >>> found = tuned_soft_impute(Phi, mask, ranks=(2, None))
        >>> found.rank, bool((found.matrix - Phi)[~mask].abs().mean() < 0.2 * Phi.abs().mean())
        (2, True)
    """
    matrix, mask = prepare(observed, mask)
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is a share between 0 and 1, got {held_out}")
    held = hold_out(mask, held_out, generator)
    seen = mask & ~held
    X, scale = standardise(matrix, seen)
    full, trials = min(X.shape), []
    for index, bound in enumerate(ranks):
        if progress is not None:
            progress(index * len(shares), (len(ranks) + 1) * len(shares), f"rank {bound or full}")
        for share, Z in zip(shares, _shares(X, seen, shares, bound, steps, tolerance), strict=True):
            lost = root_mean_square(Z - (matrix - scale.mean) / scale.scale, held)
            trials.append((float(lost), share, bound))
    error, share, best = min(trials, key=lambda trial: trial[0])
    X, scale = standardise(matrix, mask)
    *_, Z = _shares(X, mask, [each for each in shares if each >= share], best, steps, tolerance)
    return Imputation((scale.mean + scale.scale * Z).to(_float(observed.dtype)), share, best or full, error)


def _shares(X: Tensor, mask: Tensor, shares: Sequence[float], rank: int | None, steps: int, tol: float) -> list[Tensor]:
    largest = float(top_singular_values(X, 1)[0])
    return [Z for _, Z in _path(X, mask, [share * largest for share in shares], rank, steps, tol)]


def _path(
    X: Tensor, mask: Tensor, shrinkages: Sequence[float], rank: int | None, steps: int, tolerance: float
) -> Iterator[tuple[float, Tensor]]:
    Z = torch.zeros_like(X)
    for shrinkage in shrinkages:
        for _ in range(steps):
            U, S, Vh = truncated_svd(torch.where(mask, X, Z), rank or min(X.shape))
            new = U * (S - shrinkage).clamp(min=0) @ Vh
            moved, size = torch.linalg.norm(new - Z), torch.linalg.norm(Z)
            Z = new
            if moved <= tolerance * size:
                break
        yield shrinkage, Z


def _float(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.is_floating_point else torch.float32
