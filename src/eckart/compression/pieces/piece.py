"""What is decomposed together: one matrix, or several that share a basis or a set of neurons.

A piece is told what its matrices read and what the loss says of their outputs (`learn`); from then on every size is
there at once: what it takes, what it loses, and the layers that would stand in the matrices' places (`build`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property

from torch import Tensor, nn

from eckart.compression.settings import Settings
from eckart.nn import Matrix, Observation


class Piece(ABC):
    """One or several matrices that are decomposed together.

    A size is an integer from 0 to `full`: the rank of a product, or the neurons or dimensions that are left. `full`
    means that the matrices stay as they are.

    Args:
        members: The matrices, with their names; all of one dtype.
        settings: What the method's parts are told.
    """

    form: str  # what the report calls it once compressed: "factors", "pivoted", ...
    smallest = 1  # the least size that an allocation gives
    cost = "factors"  # how numbers grow with the size, as `linalg.allocate` knows it

    def __init__(self, members: Sequence[Matrix], settings: Settings) -> None:
        self.members = {matrix.name: matrix for matrix in members}
        self.settings = settings
        self.learned: dict[str, Tensor] = {}  # all that `learn` found, as flat tensors: what is kept for resuming

    @property
    def names(self) -> tuple[str, ...]:
        """The matrices that it holds."""
        return tuple(self.members)

    @property
    def label(self) -> str:
        """What it is called in choices and reports: the name of its only matrix, or of all of them."""
        return " + ".join(self.members)

    @cached_property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return next(iter(self.members.values())).weight().element_size()

    @property
    def dense_bytes(self) -> int:
        """Bytes of the matrices as they are."""
        return sum(m * n for m, n in (matrix.shape for matrix in self.members.values())) * self.itemsize

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(m, n) of what is decomposed, as the cost is counted in it."""

    @property
    def full(self) -> int:
        """The size that means dense."""
        return min(self.shape)

    @property
    def fixed_bytes(self) -> int:
        """Bytes that are stored at any size below full: permutations, a quantised remainder."""
        return 0

    @property
    def spectrum(self) -> Tensor:  # (full,) descending, float64
        """Singular values in the metric: at size r the squared error is Σ_{i>r} σ_i²."""
        return self.learned["spectrum"]

    @abstractmethod
    def learn(self, seen: Mapping[str, Observation]) -> None:
        """Find the decomposition of every size from the matrices' statistics (empty for a method that needs none)."""

    @abstractmethod
    def bytes(self, size: int) -> int:
        """What is stored at a size."""

    def size_for(self, share: float, multiple: int = 1) -> int:
        """The largest size, a multiple of `multiple`, that takes at most this share of the dense bytes."""
        budget = share * self.dense_bytes
        if budget >= self.dense_bytes:
            return self.full
        low, high = 0, self.full - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.bytes(middle) <= budget else (low, middle - 1)
        return max(low // multiple * multiple, min(1, self.full))

    def error(self, size: int) -> float:
        """The relative error ‖W − W'‖ / ‖W‖ in the metric, at a size, as the calibration has it."""
        energies = self.spectrum.square()
        total = float(energies.sum())
        return (float(energies[size:].sum()) / total) ** 0.5 if total and size < self.full else 0.0

    @abstractmethod
    def build(self, size: int) -> dict[str, nn.Module]:
        """The layers that stand in the matrices' places at a size; none at full size."""
