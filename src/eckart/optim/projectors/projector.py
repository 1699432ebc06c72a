"""What a projector is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from eckart.optim.step.slot import Slot


@dataclass(frozen=True)
class Projector:
    """Where a basis comes from.

    Args:
        first: The basis at the first gradient that is not zero. `slot.V` holds random orthonormal columns then.
        renew: The next basis, where one is due; `slot.V` holds the last one and `slot.moments` the moments. None where
            `after` moves the basis at each step.
        after: Called once D is known: puts the basis of the next step into the state, and that of the way up into
            `slot.V`. None where nothing moves between refreshes.
        orthonormal: Whether VᵀV = I.
        looks: Whether it looks at the gradient (else a zero one is no reason to wait).
        sends: What travels at a refresh where rows are shared out between processes; empty for nothing.
        state: Further states: name → shape, by its name in `SHAPES`.
    """

    first: Callable[[Slot], Tensor]
    renew: Callable[[Slot], Tensor] | None
    after: Callable[[Slot, Tensor], None] | None = None
    orthonormal: bool = True
    looks: bool = True
    sends: str = ""
    state: Mapping[str, str] = field(default_factory=dict)
