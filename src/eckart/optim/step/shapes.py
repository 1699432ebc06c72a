"""The shapes of what is kept for a matrix X (p, q) with a basis of rank r, and which of them have the rows of X."""

from collections.abc import Callable

SHAPES: dict[str, Callable[[int, int, int], tuple[int, int]]] = {
    "full": lambda p, q, r: (p, r),
    "row": lambda p, q, r: (p, 1),
    "column": lambda p, q, r: (1, r),
    "wide": lambda p, q, r: (1, q),
    "gradient": lambda p, q, r: (p, q),
    "basis": lambda p, q, r: (q, r),
    "count": lambda p, q, r: (1, 1),
}
BY_ROWS = ("full", "row", "gradient")  # cut as the parameter is, where its rows are shared out between processes
