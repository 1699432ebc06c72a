"""Rates of masks: the share that is dropped, its odds (the weight of every penalty), and the width-adaptive rate.

A mask z ∈ {0, 1} keeps an entry with probability θ = 1 − rate and divides it by θ. Then E z/θ = 1 and

    Var(z/θ) = (1 − θ)/θ = rate/(1 − rate)                          the odds, c

is all that a squared loss sees of the mask. Dropout of d columns at a fixed rate weighs the squared nuclear norm with
c/d, which vanishes with the width. With θ(d) = p/(d − (d − 1)p), which is rate(d) = d·rate/(1 + (d − 1)·rate) for
rate = 1 − p, the odds are d·(1 − p)/p and the weight (1 − p)/p has no width in it.

Paper: arXiv 1710.05092 writes θ(d) with p, the share that a network of width 1 keeps; we take the share it drops.
"""


def odds(rate: float) -> float:
    """The variance c = rate/(1 − rate) of a mask that drops entries with probability `rate` and is 1 in the mean.

    Args:
        rate: share dropped, in [0, 1).

    Returns:
        c ≥ 0.

    Raises:
        ValueError: rate outside [0, 1).

    Example:
        >>> odds(0.5), odds(0.75)
        (1.0, 3.0)
    """
    require_rate(rate)
    return rate / (1 - rate)


def adaptive_rate(rate: float, width: int) -> float:
    """The rate at which a layer of this width is regularised as strongly as one of width 1 at `rate`.

    Args:
        rate: share dropped at width 1, in [0, 1); the penalty on ‖UVᵀ‖_*² is rate/(1 − rate) at every width.
        width: number d of columns (or of blocks), ≥ 1.

    Returns:
        The share to drop, d·rate/(1 + (d − 1)·rate), in [0, 1).

    Raises:
        ValueError: rate outside [0, 1), or width below 1.

    Example:
        >>> [round(adaptive_rate(0.2, width), 4) for width in (1, 10, 100)]
        [0.2, 0.7143, 0.9615]
    """
    require_rate(rate)
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    return width * rate / (1 + (width - 1) * rate)


def require_rate(rate: float) -> None:
    """Raise unless 0 ≤ `rate` < 1."""
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise TypeError(f"rate must be a number in [0, 1), got {rate!r} ({type(rate).__name__})")
    if not 0 <= rate < 1:
        raise ValueError(f"rate must be in [0, 1), the share that is dropped, got {rate}; to keep 0.8 pass rate=0.2")


def require_block(block: int, width: int) -> None:
    """Raise unless `width` columns fall into whole blocks of `block`."""
    if isinstance(block, bool) or not isinstance(block, int):
        raise TypeError(f"block must be an int, got {block!r} ({type(block).__name__})")
    if block < 1 or width % block:
        raise ValueError(f"block must divide the width {width} into whole blocks, got {block}")
