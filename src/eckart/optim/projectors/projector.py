"""What a projector is."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from eckart.optim.slot import Slot


@dataclass(frozen=True)
class Projector:
    """Where a basis comes from.

    Args:
        first: The basis at the first gradient that is not zero. `slot.V` holds random orthonormal columns then.
        renew: The next basis, where one is due; `slot.V` holds the last one.
        after: V for the way up, once D is known (Dion); None where it is the V of the way down.
        orthonormal: Whether VᵀV = I.
        looks: Whether it looks at the gradient (else a zero one is no reason to wait).
        sends: What travels at a refresh where rows are shared out between processes; empty for nothing.
        state: Further states, name → shape as for `Inner` ("basis" is (q, r)).
    """

    first: Callable[[Slot], Tensor]
    renew: Callable[[Slot], Tensor]
    after: Callable[[Slot, Tensor], Tensor] | None = None
    orthonormal: bool = True
    looks: bool = True
    sends: str = ""
