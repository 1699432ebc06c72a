"""What an inner rule is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from eckart.optim.slot import Slot

Moments = dict[str, Tensor]  # name → float32
SHAPES = {
    "full": lambda p, r: (p, r),
    "row": lambda p, r: (p, 1),
    "column": lambda p, r: (1, r),
}


@dataclass(frozen=True)
class Inner:
    """A rule with its moments.

    Args:
        directions: Given slots (of one group) and their moments, the D of each; moments are updated in place.
        moments: Name → shape: "full" (p, r), "row" (p, 1) or "column" (1, r).
    """

    directions: Callable[[Sequence[Slot], Sequence[Moments]], list[Tensor]]
    moments: Mapping[str, str]
