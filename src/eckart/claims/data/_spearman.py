"""Spearman's rank correlation: how well one list goes up where another does."""

from collections.abc import Sequence

import torch


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """The correlation of the places of two lists without ties, 1 where they have the same order, −1 the opposite.

    Example:
        >>> round(spearman([1.0, 2.0, 3.0, 4.0], [10.0, 30.0, 20.0, 90.0]), 4)
        0.8
    """
    places = torch.stack([torch.tensor(list(values)).argsort().argsort().double() for values in (x, y)])
    return float(torch.corrcoef(places)[0, 1])
