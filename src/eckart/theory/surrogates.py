"""Surrogates M̂ of a matrix that is seen in part: unbiased, so that their leading subspaces are a start (T5).

    completion   M̂ = p⁻¹ mask∘Φ       p the share of entries that are observed
    sensing      M̂ = k⁻¹ Σ y_i A_i    y_i = ⟨A_i, Φ⟩, the entries of A_i independent of variance 1

`linalg.spectral_start(M̂, width, depth, eps)` makes a deep factorisation of them; `spectral_rates` its learning rates.
Where the matrix is wholly seen, it is its own surrogate.

Cost: one pass over the data.
Paper: 2311.05061; none.
"""

import torch
from torch import Tensor

from eckart.theory.compression import compressed_rates
from eckart.theory.losses import require_measurements
from eckart.theory.observed import seen_part


def completion_surrogate(
    observed: Tensor,  # (m, n)
    mask: Tensor,  # (m, n)
) -> Tensor:  # (m, n)
    """M̂ = p⁻¹ mask∘Φ, whose mean over masks of independent entries is Φ.

    Args:
        observed: Φ; what it holds where it was not observed does not matter.
        mask: True or 1 where it was.

    Returns:
        M̂.

    Raises:
        ValueError: the shapes differ, or nothing is observed.

    Example:
        >>> completion_surrogate(torch.tensor([[1.0, 5.0]]), torch.tensor([[True, False]])).tolist()
        [[2.0, 0.0]]
    """
    return seen_part(observed, mask) * (mask.numel() / mask.bool().sum())


def sensing_surrogate(
    operators: Tensor,  # (k, m, n)
    values: Tensor,  # (k,)
) -> Tensor:  # (m, n)
    """M̂ = k⁻¹ Σ y_i A_i, whose mean over operators of independent entries of variance 1 is Φ.

    Args:
        operators: A_1, …, A_k.
        values: y_i = ⟨A_i, Φ⟩.

    Returns:
        M̂.

    Raises:
        ValueError: as many values as operators were not given.

    Example:
        >>> sensing_surrogate(torch.eye(2)[None], torch.tensor([3.0])).tolist()
        [[3.0, 0.0], [0.0, 3.0]]
    """
    require_measurements(operators, values)
    return torch.tensordot(values, operators, dims=1) / len(values)


def spectral_rates(
    depth: int,  # L
    rate: float,  # η
    outer: float = 1.0,  # α
) -> list[float]:  # L rates
    """The learning rates of a `spectral_start`: η inside, αη for the first and the last factor.

    Args:
        depth: L ≥ 2.
        rate: η.
        outer: α. The paper takes 5 for completion, 1 for factorisation and sensing.

    Returns:
        One rate for each factor.

    Raises:
        ValueError: depth below 2, or outer negative.

    Example:
        >>> spectral_rates(3, 0.1, outer=5.0)
        [0.5, 0.1, 0.5]
    """
    if depth < 2:
        raise ValueError(f"depth must be at least 2, got {depth}")
    return compressed_rates(depth - 2, rate, outer)
