"""What is decomposed together: one matrix, or several that share a basis or a set of neurons.

A piece is told what its matrices read and what the loss says of their outputs (`learn`); from then on every size is
there at once: what it takes, what it loses, and the layers that would stand in the matrices' places (`build`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TypeVar

from torch import Tensor, nn

from eckart.compression.metrics import Metric, Pair
from eckart.compression.settings import Settings
from eckart.linalg import map_side_by_side, working_dtype
from eckart.nn import Matrix, Observation

P = TypeVar("P", bound="Piece")
T = TypeVar("T")


class Piece(ABC):
    """One or several matrices that are decomposed together.

    A size is an integer from 0 to `full`: the rank of a product, or the neurons or dimensions that are left. `full`
    means that the matrices stay as they are.

    Args:
        members: The matrices, with their names; all of one dtype.
        settings: What the method's parts are told.
        metric: In which error a decomposition is best.
    """

    form: str  # what the report calls it once compressed: "factors", "pivoted", ...
    smallest = 1  # the least size that an allocation gives

    def __init__(self, members: Sequence[Matrix], settings: Settings, metric: Metric) -> None:
        self.members = {matrix.name: matrix for matrix in members}
        self.settings, self.metric = settings, metric
        self.forgotten = False
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
    def spectrum(self) -> Tensor:  # (full,) descending, float64
        """Singular values in the metric: at size r the squared error is Σ_{i>r} σ_i²."""
        return self.learned["spectrum"]

    @property
    def energy(self) -> float:
        """‖W‖² in the metric: the squared error where nothing is left."""
        return float(self.spectrum.double().square().sum())

    @property
    def of_outputs(self) -> bool:
        """Whether its error is the sum of those of its matrices' outputs, and so comparable with plain rounding's."""
        return True

    @abstractmethod
    def learn(self, seen: Mapping[str, Observation]) -> None:
        """Find the decomposition of every size from the matrices' statistics (empty for a method that needs none)."""

    @abstractmethod
    def bytes(self, size: int) -> int:
        """What is stored at a size."""

    def error(self, size: int) -> float:
        """The relative error ‖W − W'‖ / ‖W‖ in the metric, at a size, as the calibration has it."""
        whole, lost = self.energy, float(self.spectrum[size:].double().square().sum())
        return (lost / whole) ** 0.5 if whole and size < self.full else 0.0

    @abstractmethod
    def build(self, size: int) -> dict[str, nn.Module]:
        """The layers that stand in the matrices' places at a size; none at full size."""

    def forget(self) -> None:
        """Drop what only `build` needs; sizes, bytes and errors stay known."""
        self.forgotten = True
        self.learned = {name: tensor for name, tensor in self.learned.items() if tensor.ndim < 2}

    def observed(self, matrix: Matrix, seen: Mapping[str, Observation]) -> Observation:
        """What was seen of a matrix; nothing, where no batch uses it."""
        return seen.get(matrix.name, Observation(matrix.name, tokens=0))

    def covariances(self, matrix: Matrix, seen: Mapping[str, Observation]) -> Pair:
        """C (n, n) and G (m, m) of a matrix in the metric; None is the identity."""
        return self.metric.pair(self.observed(matrix, seen), self.settings)


def of_each(function: Callable[[P], T], pieces: Sequence[P]) -> Iterator[T]:
    """function(piece) of each piece, in order; on CPUs several at a time."""
    on_cpu = all(matrix.weight().device.type == "cpu" for piece in pieces for matrix in piece.members.values())
    return map_side_by_side(function, pieces, workers=None if on_cpu else 1)


def working(matrix: Matrix) -> Tensor:  # (m, n)
    """The weight, in float32 or float64."""
    W = matrix.weight().detach()
    return W.to(working_dtype(W.dtype))


def bias_of(matrix: Matrix) -> Tensor | None:  # (m,)
    """The bias of the matrix's layer, if it has one."""
    return getattr(matrix.module, "bias", None)
