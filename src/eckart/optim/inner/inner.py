"""What an inner rule is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from eckart.optim.step.slot import Slot

Moments = dict[str, Tensor]  # name → float32


@dataclass(frozen=True)
class Inner:
    """A rule with its moments.

    Args:
        directions: Given slots (of one group) and their moments, the D of each; moments are updated in place.
        moments: Name → shape, by its name in `SHAPES`.
        looks: Whether it looks at X itself, beside R.
    """

    directions: Callable[[Sequence[Slot], Sequence[Moments]], list[Tensor]]
    moments: Mapping[str, str]
    looks: bool = False
