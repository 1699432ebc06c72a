"""How a network compresses the features of each class, layer by layer (T7).

    D_l = tr Σ_W / tr Σ_B,    Σ_W: covariance within the classes, Σ_B: covariance of the class means.

In a deep linear network trained to (nearly) zero loss from ε times orthogonal weights, on K balanced classes of n
orthonormal samples, each layer keeps the class means at the K singular values n^{1/2L} and the rest at the bulk's ε:

    D_{l+1} / D_l ≈ ε² / n^{1/L}            up to a share of order ε².

The measures take the features of any network: one (N, d) matrix a layer.

Cost: one pass over the features.
Paper: 2311.02960; none. It is an approximation at the minimum: a network that has not fitted its data, or starts from
other weights, need not follow it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class GeometricDecay(NamedTuple):
    """A straight line through log D_l: the factor by which each layer multiplies D, and how straight the line is."""

    ratio: Tensor  # (), exp(slope)
    r_squared: Tensor  # (), 1 for an exactly geometric decay


def within_between(
    features: Tensor,  # (N, …)
    labels: Tensor,  # (N,)
) -> Tensor:  # ()
    """How spread the features of a class are, beside the class means: D = tr Σ_W / tr Σ_B.

    Args:
        features: of one layer, a sample in each row; more dimensions (channels, positions) are flattened.
        labels: the class of each sample, any integers.

    Returns:
        D ≥ 0: 0 where each class is one point (neural collapse), infinite where all class means coincide.

    Raises:
        ValueError: as many labels as samples were not given, or there are fewer than two classes.

    Example:
        >>> features = torch.tensor([[1.0, 0.5], [1.0, -0.5], [-1.0, 0.5], [-1.0, -0.5]])
        >>> within_between(features, torch.tensor([3, 3, 7, 7])).item()
        0.25
    """
    if labels.shape != features.shape[:1]:
        raise ValueError(f"labels {tuple(labels.shape)} must be (N,), one for each row of {tuple(features.shape)}")
    classes, index, counts = labels.unique(return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise ValueError(f"labels hold {len(classes)} class; the spread between classes needs two")
    Z = features.flatten(1)
    Z = Z if Z.dtype == torch.float64 else Z.float()
    Z = Z - Z.mean(dim=0)  # the class means are then measured from the global one, and large offsets lose no digits
    means = torch.zeros(len(classes), Z.shape[1], dtype=Z.dtype, device=Z.device).index_add_(0, index, Z)
    means = means / counts[:, None]
    within = (Z - means[index]).square().sum()
    return within / (counts[:, None] * means.square()).sum()


def layerwise_within_between(
    features: Sequence[Tensor],  # L × (N, …)
    labels: Tensor,  # (N,)
) -> Tensor:  # (L,)
    """D_l of every layer of a network, from the list of its layers' features.

    Args:
        features: one tensor a layer, in order; widths may differ.
        labels: the class of each sample.

    Returns:
        D: one number a layer.

    Example:
        >>> X = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> layerwise_within_between([X, X * torch.tensor([1.0, 0.5])], torch.tensor([0, 0, 1, 1])).tolist()
        [1.0, 0.25]
    """
    return torch.stack([within_between(Z, labels) for Z in features])


def linear_features(
    weights: Sequence[Tensor],  # W_1 (d_1, d_0), …, W_L (d_L, d_{L−1})
    inputs: Tensor,  # X (d_0, N)
) -> list[Tensor]:  # L × (N, d_l)
    """The features of a deep linear network: X, W_1 X, …, W_{L−1} … W_1 X, all that goes into a layer.

    Args:
        weights: first layer first.
        inputs: X, a sample in each column, as `regression` takes it.

    Returns:
        L matrices with a sample in each row, as `layerwise_within_between` takes them.

    Example:
        >>> [Z.tolist() for Z in linear_features([torch.tensor([[2.0]]), torch.tensor([[5.0]])], torch.tensor([[3.0]]))]
        [[[3.0]], [[6.0]]]
    """
    Z = [inputs]
    for W in weights[:-1]:
        Z.append(W @ Z[-1])
    return [features.mT for features in Z]


def compression_ratio(
    eps: float,
    samples: int,  # n
    depth: int,  # L
) -> float:
    """What each layer of a trained deep linear network multiplies D by: ε² / n^{1/L} (T7).

    Args:
        eps: ε, the scale of the orthogonal start.
        samples: n, the samples of a class.
        depth: L.

    Returns:
        The predicted D_{l+1} / D_l.

    Example:
        >>> [round(compression_ratio(0.5, 10, depth), 3) for depth in (4, 6, 8)]
        [0.141, 0.17, 0.187]
    """
    return float(eps**2 / samples ** (1 / depth))


def geometric_decay(
    values: Tensor,  # (L,) positive
) -> GeometricDecay:
    """Fit D_l = D_0 · ratio^l by least squares on the logarithms.

    Args:
        values: D_0, D_1, …, at least two, all positive.

    Returns:
        ratio, and R² of the straight line (1 where there is nothing to explain).

    Raises:
        ValueError: fewer than two values, or one that is not positive.

    Example:
        >>> [round(number.item(), 4) for number in geometric_decay(torch.tensor([8.0, 4.0, 2.0, 1.0]))]
        [0.5, 1.0]
    """
    if values.ndim != 1 or len(values) < 2 or not bool((values > 0).all()):
        raise ValueError(f"values must be two or more positive numbers, D_0, D_1, …, got {values.tolist()}")
    y = values.log()
    y = y - y.mean()
    x = torch.arange(len(y), dtype=y.dtype, device=y.device) - (len(y) - 1) / 2
    slope = (x * y).sum() / x.square().sum()
    total = y.square().sum()
    rest = (y - slope * x).square().sum()
    return GeometricDecay(slope.exp(), 1 - rest / torch.where(total > 0, total, 1.0))
