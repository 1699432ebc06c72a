"""The spectrum of a learned representation: in how many directions an encoder's output varies.

    Σ = E (z − E z)(z − E z)ᵀ (h, h), λ its eigenvalues; effective rank exp(−Σ p ln p) with p = λ/Σλ, stable rank Σλ/λ₁

Cost: the encoder's pass, 2 N h² operations and one h×h `eigh`; memory (h, h) whatever the number of batches.

Paper: none; the effective rank of a covariance as in RankMe (arXiv 2210.02885), which takes singular values where we
take variances.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eckart import linalg
from eckart.nn.batches import Padding, run_model, to_device
from eckart.nn.modes import evaluating
from eckart.nn.statistics import Kept, Statistics


@dataclass(frozen=True)
class RepresentationSpectrum:
    """The variances of a representation along its principal directions, and what they amount to.

    Args:
        variances: λ (h,), descending, float64.
        effective_rank: exponential of their entropy, from 1 to h; 0 if nothing varies.
        stable_rank: their sum over the largest, from 1 to h; 0 if nothing varies.
        rows: how many representations were seen.

    Example:
        >>> representation_spectrum(nn.Identity(), [torch.tensor([[1.0, 0.0], [-1.0, 0.0]])]).stable_rank
        1.0
    """

    variances: Tensor
    effective_rank: float
    stable_rank: float
    rows: int


def representation_spectrum(
    encoder: nn.Module,  # a batch → (N, h), or (N, ..., h)
    batches: Iterable[Any],
) -> RepresentationSpectrum:
    """Run an encoder over whole, unmasked batches and take the spectrum of its output's covariance.

    Args:
        encoder: gives a tensor whose last dimension is h; it runs in eval mode and is in its former mode afterwards.
        batches: read once; each a tensor, a tuple (given by position: patches and positions, say) or a dict (by
            keyword). Rows that a dict's attention_mask hides do not count.

    Returns:
        The spectrum; all rows of all batches and positions count the same.

    Raises:
        ValueError: no batches, or a representation that is not finite or has not two dimensions at least.
        TypeError: the encoder gives no tensor, or `batches` is one tensor instead of several.

    Example:
        >>> X = torch.tensor([[3.0, 1.0], [-3.0, 1.0], [0.0, 2.0], [0.0, 0.0]])
        >>> seen = representation_spectrum(nn.Identity(), [X[:2], X[2:]])
        >>> seen.variances.tolist(), round(seen.stable_rank, 3), seen.rows
        ([4.5, 0.5], 1.111, 4)
    """
    if isinstance(batches, Tensor):
        raise TypeError("batches is a single tensor: put it in a list")
    with evaluating(encoder):
        statistics = _statistics(encoder, batches)
    scatter = None if statistics is None else statistics.scatter
    if statistics is None or scatter is None:
        raise ValueError("batches is empty: give at least one batch (an iterator that was read once stays empty)")
    count = int(statistics.count)
    variances = linalg.psd_eigenvalues(scatter[0] / count)
    spread = variances.sqrt()
    return RepresentationSpectrum(
        variances.cpu(), float(linalg.effective_rank(spread)), float(linalg.stable_rank(spread)), count
    )


@torch.no_grad()
def _statistics(encoder: nn.Module, batches: Iterable[Any]) -> Statistics | None:
    """The moments of all representations, in float64; None if there is none."""
    statistics: Statistics | None = None
    device = next((parameter.device for parameter in encoder.parameters()), None)
    for batch in batches:
        batch = batch if device is None else to_device(batch, device)
        z = run_model(encoder, batch)
        if not isinstance(z, Tensor):
            raise TypeError(f"encoder gave {type(z).__name__}, not a tensor; wrap it in a module that picks one")
        if z.ndim < 2:
            raise ValueError(f"encoder gave {tuple(z.shape)}; a representation is (N, h) or (N, ..., h)")
        rows = Padding(batch).rows(z).to(torch.float64)
        if len(rows):
            statistics = statistics or Statistics(Kept(moments=True), 1, rows.shape[1], rows)
            statistics.add([rows.unsqueeze(0)], slice(0, 1))
    return statistics
