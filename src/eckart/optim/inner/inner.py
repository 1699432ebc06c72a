"""What an inner rule is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from eckart.optim.slot import Slot

Moments = dict[str, Tensor]  # name → float32
SHAPES: dict[str, Callable[[int, int, int], tuple[int, int]]] = {
    "full": lambda p, q, r: (p, r),
    "row": lambda p, q, r: (p, 1),
    "column": lambda p, q, r: (1, r),
    "wide": lambda p, q, r: (1, q),
}


@dataclass(frozen=True)
class Inner:
    """A rule with its moments.

    Args:
        directions: Given slots (of one group) and their moments, the D of each; moments are updated in place.
        moments: Name → shape: "full" (p, r), "row" (p, 1), "column" (1, r) or "wide" (1, q).
        looks: Whether it looks at X itself, beside R.
    """

    directions: Callable[[Sequence[Slot], Sequence[Moments]], list[Tensor]]
    moments: Mapping[str, str]
    looks: bool = False
