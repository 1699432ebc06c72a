"""What to hide: mask ratios over time, and masks over items.

Items are entries of a vector, patches of an image, or tokens; a mask is boolean (N, T), True = hidden. Two laws:

    bernoulli   each item is hidden with probability p, independently      what the theory of `linear_masked` assumes
    exact       round(p·T) items of each sample, drawn without replacement (arXiv 2111.06377): as many items are left
                in every sample, so that an encoder can be given these alone

Cost: one uniform number for each item, and for `exact` two sorts of them. Nothing is read back to the host.

Paper: none for the laws. Where p·T rounds to nothing or to everything, `exact` still hides one item or leaves one.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from eckart.regularizers.rates import require_rate

Schedule = Callable[[float], float]  # share of the steps that are done, from 0 to 1 → rate


def linear_rate(start: float, end: float) -> Schedule:
    """A mask ratio that moves from `start` to `end` at an even pace.

    Args:
        start: ratio at the first step, in [0, 1).
        end: ratio at the last, likewise.

    Returns:
        The schedule: share of the steps done, from 0 to 1 → ratio. A constant ratio needs none: give the number.

    Raises:
        ValueError: a ratio outside [0, 1).

    Example:
        >>> [linear_rate(0.0, 0.8)(share) for share in (0.0, 0.25, 1.0)]
        [0.0, 0.2, 0.8]
    """
    require_rate(start)
    require_rate(end)
    return lambda share: start + (end - start) * share


def cosine_rate(start: float, end: float) -> Schedule:
    """A mask ratio that leaves `start` and reaches `end` slowly, along half a cosine.

    Args:
        start: ratio at the first step, in [0, 1).
        end: ratio at the last, likewise.

    Returns:
        The schedule: share of the steps done, from 0 to 1 → ratio.

    Raises:
        ValueError: a ratio outside [0, 1).

    Example:
        >>> [round(cosine_rate(0.0, 0.8)(share), 3) for share in (0.0, 0.25, 0.5, 1.0)]
        [0.0, 0.117, 0.4, 0.8]
    """
    require_rate(start)
    require_rate(end)
    return lambda share: start + (end - start) * (1 - math.cos(math.pi * share)) / 2


def bernoulli_mask(
    maskable: Tensor,  # (N, T) bool
    rate: float,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:  # (N, T) bool
    """Hide each item with probability `rate`, independently of all others.

    Args:
        maskable: True where an item may be hidden, False for padding and the like.
        rate: p, the probability, in [0, 1).
        generator: draws the mask, on its device; None means a fixed seed on that of `maskable`.

    Returns:
        The mask, True = hidden. A sample may be left whole or be hidden whole.

    Raises:
        ValueError: rate outside [0, 1), or `maskable` not (N, T) with T ≥ 1.

    Example:
        >>> hidden = bernoulli_mask(torch.tensor([True, False]).repeat(1, 5000), 0.3)
        >>> abs(hidden.sum().item() / 5000 - 0.3) < 0.02, hidden[:, 1::2].any().item()
        (True, False)
    """
    return (_keys(maskable, rate, generator) < rate) & maskable


def exact_mask(
    maskable: Tensor,  # (N, T) bool
    rate: float,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:  # (N, T) bool
    """Hide a fixed number of items in each sample, the share `rate` of those that may be hidden.

    Args:
        maskable: True where an item may be hidden, False for padding and the like.
        rate: the share, in [0, 1).
        generator: draws the mask, on its device; None means a fixed seed on that of `maskable`.

    Returns:
        The mask, True = hidden: `hidden_count` of the items that may be hidden; none in a sample that has no such item.

    Raises:
        ValueError: rate outside [0, 1), or `maskable` not (N, T) with T ≥ 1.

    Example:
        >>> maskable = torch.arange(8) < torch.tensor([[8], [4]])  # the second sequence is padded
        >>> exact_mask(maskable, 0.75).sum(1), exact_mask(maskable, 0.75)[1, 4:].any()
        (tensor([6, 3]), tensor(False))
    """
    keys = _keys(maskable, rate, generator).masked_fill(~maskable, 2.0)
    place = keys.argsort(dim=1).argsort(dim=1)
    return place < hidden_count(maskable.sum(1, keepdim=True), rate)


def hidden_count(count: Tensor, rate: float) -> Tensor:
    """How many of `count` items `exact_mask` hides: round(rate·count), from 1 to count − 1 if rate > 0 and count > 1.

    Args:
        count: numbers of items that may be hidden, ≥ 0.
        rate: the share, in [0, 1).

    Returns:
        The numbers, int64; a single item is hidden if rate > 0.

    Raises:
        ValueError: rate outside [0, 1).

    Example:
        >>> hidden_count(torch.tensor([0, 1, 3, 16]), 0.9).tolist()
        [0, 1, 2, 14]
    """
    require_rate(rate)
    if rate == 0:
        return torch.zeros_like(count)
    most = torch.where(count > 1, count - 1, count)
    return (rate * count.float()).round().to(torch.int64).clamp_min(1).minimum(most)


def _keys(maskable: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """A uniform number for each item, on the device of `maskable`."""
    require_rate(rate)
    if maskable.ndim != 2 or not maskable.shape[1] or maskable.dtype != torch.bool:
        raise ValueError(
            f"maskable must be (N, T) and boolean with T ≥ 1 items, got {maskable.dtype} {tuple(maskable.shape)}"
        )
    generator = generator if generator is not None else torch.Generator(maskable.device).manual_seed(0)
    return torch.rand(maskable.shape, generator=generator, device=generator.device).to(maskable.device)
