"""The values of a profile's rows: a number, None where nothing is known, or a (low, high) pair of numbers."""

import math
from typing import Any, TypeGuard


def is_interval(value: Any) -> TypeGuard[tuple[float, float]]:
    """True for a (low, high) pair of numbers, which is how a profile gives what it only knows to lie in a range.

    Args:
        value: a value from `Profile.rows()`.

    Returns:
        Whether it is a tuple of two numbers (names, as in `shared_with`, are not).

    Example:
        >>> is_interval((3.0, 5.5)), is_interval(("q_proj", "k_proj")), is_interval(4.0)
        (True, False, False)
    """
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(end, int | float) for end in value)


def ends(value: Any) -> tuple[Any, Any]:
    """The low and the high end of a value: of an interval its own, of a number (or of None) twice itself.

    Example:
        >>> ends((2.0, 6.0)), ends(5), ends(None)
        ((2.0, 6.0), (5, 5), (None, None))
    """
    return value if is_interval(value) else (value, value)


def middle(value: Any) -> float:
    """The number that stands for a value where it is drawn: itself, the middle of its interval, or NaN for None.

    Example:
        >>> middle((2.0, 6.0)), middle(5), middle(None)
        (4.0, 5, nan)
    """
    if value is None:
        return math.nan
    return (value[0] + value[1]) / 2 if is_interval(value) else value
