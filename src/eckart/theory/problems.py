"""Problems on which the theorems are exact: a target of low rank, and classes on whitened data.

Whitened means X Xᵀ = I: the columns of Xᵀ are orthonormal.

Paper: the papers whiten by (X Xᵀ)^{−1/2}; any basis of the same row space is as white, and only the labels' place in it
matters.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from eckart.linalg import orthonormalize


def low_rank_target(
    shape: tuple[int, int],  # m, n
    values: Sequence[float],  # r
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:  # (m, n)
    """A target Φ with given singular values and uniformly drawn singular vectors.

    Args:
        shape: (m, n).
        values: the singular values that are not zero; their number is the rank r ≤ min(m, n).
        generator: source of randomness, also of the device; None takes a fixed seed on the CPU.
        dtype: of the target.

    Returns:
        Φ = U diag(values) Vᵀ.

    Raises:
        ValueError: more values than min(m, n).

    Example:
        >>> target = low_rank_target((5, 4), [3.0, 1.0])
        >>> torch.linalg.svdvals(target).round(decimals=6).tolist()
        [3.0, 1.0, 0.0, 0.0]
    """
    if not 0 < len(values) <= min(shape):
        raise ValueError(f"values must be 1 to {min(shape)} singular values for a target {shape}, got {len(values)}")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    U, V = (orthonormalize(_gaussian(size, len(values), generator)) for size in shape)
    return (U * torch.tensor(values, dtype=U.dtype, device=U.device) @ V.mT).to(dtype)


def whiten(
    inputs: Tensor,  # X (n, N)
) -> Tensor:  # (n, N)
    """Whitened data of the same row space: X Xᵀ = I.

    Args:
        inputs: X, a sample in each column; at least as many samples as dimensions.

    Returns:
        X with orthonormal rows.

    Raises:
        ValueError: fewer samples than dimensions.

    Example:
        >>> X = whiten(torch.tensor([[3.0, 0.0, 4.0], [1.0, 1.0, 1.0]]))
        >>> (X @ X.mT).round(decimals=5).abs().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if inputs.ndim != 2 or inputs.shape[0] > inputs.shape[1]:
        raise ValueError(
            f"inputs {tuple(inputs.shape)} must be (n, N) with N ≥ n to be whitened; give more samples, or project "
            "them to fewer dimensions"
        )
    return orthonormalize(inputs.mT).mT.contiguous()


def balanced_classes(
    dimension: int,  # n
    classes: int,  # K
    samples: int,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # X (n, N), Y (K, N), labels (N,)
    """Gaussian inputs with labels that have nothing to do with them, N = K × samples: a problem only training solves.

    Args:
        dimension: of an input.
        classes: K.
        samples: of each class.
        generator: source of randomness, also of the device; None takes a fixed seed on the CPU.

    Returns:
        inputs: X, a sample in each column, float64; `whiten` it for T1 and T7.
        targets: Y, one-hot columns.
        labels: 0, …, K − 1, class after class.

    Example:
        >>> inputs, targets, labels = balanced_classes(4, classes=2, samples=3)
        >>> tuple(inputs.shape), labels.tolist(), targets[1].tolist()
        ((4, 6), [0, 0, 0, 1, 1, 1], [0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    inputs = _gaussian(dimension, classes * samples, generator)
    labels = torch.arange(classes, device=inputs.device).repeat_interleave(samples)
    return inputs, torch.nn.functional.one_hot(labels).mT.to(inputs.dtype), labels


def _gaussian(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator, device=generator.device, dtype=torch.float64)
