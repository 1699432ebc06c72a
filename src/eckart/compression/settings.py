"""What a method's parts are told, checked once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eckart.nn import Progress, Role


@dataclass(frozen=True)
class Settings:
    """Numbers that metric, allocation, storage and remainder share.

    Args:
        shrink: Share of the identity that is mixed into the covariance of the inputs (see `linalg.shrink`), 0 to 1.
        shrink_outputs: Likewise for the covariance of the outputs' gradients.
        floor: Least share of its dense bytes that each matrix keeps, as a share of `keep`, 0 to 1.
        multiple: Ranks are multiples of this; 8 or 16 suits kernels that are fast at such sizes only.
        options: What the method alone knows.
        roles: Matrix name → who it is: q, k, v, o, gate, up, down, …
        progress: Called as progress(done, total, label).

    Raises:
        ValueError: A number is out of its range.

    Example:
        >>> Settings(floor=0.5, multiple=8).shrink
        0.05
        >>> Settings(floor=50)
        Traceback (most recent call last):
        ValueError: floor: 50; give a number from 0 to 1
    """

    shrink: float = 0.05
    shrink_outputs: float = 0.05
    floor: float = 0.25
    multiple: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    roles: Mapping[str, Role] = field(default_factory=dict)
    progress: Progress | None = None

    def __post_init__(self) -> None:
        for name in ("shrink", "shrink_outputs", "floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)}; give a number from 0 to 1")
        if not isinstance(self.multiple, int) or self.multiple < 1:
            raise ValueError(f"multiple: {self.multiple!r}; give an integer of at least 1, such as 8")
