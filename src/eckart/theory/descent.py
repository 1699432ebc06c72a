"""Gradient descent on a deep linear network P = W_L … W_1, for any loss of the product P.

    W_l ← (1 − η_l λ) W_l − η_l (W_L … W_{l+1})ᵀ G (W_{l−1} … W_1)ᵀ,      G = ∂loss/∂P

The chain of products is walked forward once and backward once, so a step costs 3L − 3 matrix products instead of the
L² that each gradient on its own would take. A step reads no number back to the host.

Paper: 2306.01154 and 2406.04112 train with autograd; this is the same step written out.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor

from eckart.linalg import orthonormalize

Slope = Callable[[Tensor], tuple[Tensor, Tensor]]  # P → (loss, ∂loss/∂P)


def orthogonal_weights(
    widths: Sequence[int],  # d_0, d_1, …, d_L
    eps: float,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:  # W_1 (d_1, d_0), …, W_L (d_L, d_{L−1})
    """Start a deep linear network at ε times (semi-)orthogonal matrices, uniformly drawn.

    Args:
        widths: input dimension, hidden widths, output dimension.
        eps: ε > 0, the scale of every layer.
        generator: source of randomness, also of the device; None takes a fixed seed on the CPU.
        dtype: of the weights.

    Returns:
        weights: first layer first; W Wᵀ = ε² I or WᵀW = ε² I, whichever the shape allows.

    Raises:
        ValueError: fewer than two widths, a width below 1, or eps not positive.

    Example:
        >>> [W] = orthogonal_weights([3, 2], 0.5)
        >>> (W @ W.mT).round(decimals=6).abs().tolist()
        [[0.25, 0.0], [0.0, 0.25]]
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths must be at least two positive numbers, d_0, …, d_L, got {list(widths)}")
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    return [eps * _orthogonal(m, n, generator, dtype) for n, m in pairwise(widths)]


def product(
    weights: Sequence[Tensor],  # W_1 (d_1, d_0), …, W_L (d_L, d_{L−1})
) -> Tensor:  # (d_L, d_0)
    """The end-to-end matrix W_L … W_1.

    Args:
        weights: first layer first.

    Returns:
        P: (d_L, d_0).

    Example:
        >>> product([torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0], [3.0]])]).tolist()
        [[2.0, 0.0], [6.0, 0.0]]
    """
    return reduce(lambda P, W: W @ P, weights)


def descend(
    weights: Sequence[Tensor],  # W_1 (d_1, d_0), …, W_L (d_L, d_{L−1})
    slope: Slope,
    *,
    rate: float | Sequence[float],
    decay: float = 0.0,
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Run gradient descent for as long as the caller iterates.

    Args:
        weights: the start, first layer first, (…, m, n) for several networks at once; left as they are.
        slope: P → (loss, ∂loss/∂P), from `losses` or your own.
        rate: η, or one learning rate for each layer (the discrepant rates of deep matrix completion).
        decay: λ ≥ 0, weight decay on every layer.

    Yields:
        The weights at t = 0, 1, …, and the loss there (a scalar tensor). The list's tensors are the same throughout and
        change in place: clone what you keep.

    Raises:
        ValueError: as many rates as layers were not given, decay is negative, or the layers' shapes do not follow on
            one another.

    Example:
        >>> from itertools import islice
        >>> from eckart.theory.losses import factorization
        >>> target = torch.tensor([[1.0]])
        >>> [(round(W.item(), 3), round(loss.item(), 3))
        ...  for (W,), loss in islice(descend([torch.zeros(1, 1)], factorization(target), rate=0.5), 3)]
        [(0.0, 0.5), (0.5, 0.125), (0.75, 0.031)]
    """
    rates = [float(rate)] * len(weights) if isinstance(rate, int | float) else list(rate)
    if len(rates) != len(weights):
        raise ValueError(f"rate has {len(rates)} entries for {len(weights)} layers; give one for each, or a number")
    if decay < 0:
        raise ValueError(f"decay must not be negative, got {decay}")
    shapes = [tuple(W.shape) for W in weights]
    if min(map(len, shapes), default=0) < 2 or any(a[-2] != b[-1] for a, b in pairwise(shapes)):
        raise ValueError(
            f"weights {shapes} do not follow on one another: W_l must be (d_l, d_(l−1)), first layer first"
        )
    weights = [W.clone() for W in weights]
    while True:
        prefixes = [weights[0]]  # W_l … W_1
        for W in weights[1:]:
            prefixes.append(W @ prefixes[-1])
        loss, G = slope(prefixes[-1])
        yield weights, loss
        for index in reversed(range(len(weights))):
            W = weights[index]
            step = G @ prefixes[index - 1].mT if index else G
            if index:
                G = W.mT @ G
            W.mul_(1 - rates[index] * decay).sub_(step, alpha=rates[index])


def first_gradient(
    weights: Sequence[Tensor],  # W_1 (d_1, d_0), …, W_L (d_L, d_{L−1})
    slope: Slope,
) -> Tensor:  # (d_1, d_0)
    """The gradient ∇_{W_1} loss, the signal from which `linalg.invariant_subspace` reads what will move (T1, T4).

    Args:
        weights: first layer first.
        slope: P → (loss, ∂loss/∂P).

    Returns:
        G_1 = (W_L … W_2)ᵀ ∂loss/∂P.

    Example:
        >>> from eckart.theory.losses import factorization
        >>> first_gradient([torch.zeros(2, 2), 3 * torch.eye(2)], factorization(torch.eye(2))).tolist()
        [[-3.0, 0.0], [0.0, -3.0]]
    """
    _, G = slope(product(weights))
    return reduce(lambda S, W: W.mT @ S, reversed(weights[1:]), G)


def _orthogonal(m: int, n: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    tall = torch.randn(max(m, n), min(m, n), generator=generator, device=generator.device, dtype=torch.float64)
    Q = orthonormalize(tall).to(dtype)
    return Q if m >= n else Q.mT.contiguous()
