"""The sums behind `observe`: told of every read and every output's gradient, it keeps what was asked for."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator

import torch
from torch import Tensor

from eckart.nn.batches import Keys
from eckart.nn.gradients import WeightGradients
from eckart.nn.matrices import Matrix
from eckart.nn.reads import Read
from eckart.nn.sharing import Sharing
from eckart.nn.statistics import Kept, Statistics


class Observer:
    """Running sums of a model's matrices; bracket each batch by `begin_batch` and `end_batch`.

    Args:
        by_hand: names of those whose gradient autograd can't give (their weight is computed); it is Σ g xᵀ.
        wanted: as for `observe`.
        sample: rows kept of each input, at most; counts if "input_sample" is wanted.
    """

    def __init__(self, by_hand: Collection[str], wanted: Collection[str], sample: int) -> None:
        self.wanted = wanted
        self.counts: dict[str, list[int]] = {}  # rows that each matrix of a stack has read
        self.looked_up: dict[str, list[int]] = {}  # ids looked up in an embedding
        self.sharing = Sharing()
        self.outputs: dict[str, Statistics] = {}  # of the gradients of the outputs
        self.gradients: dict[str, Tensor] = {}  # those made by hand
        self.weights: WeightGradients | None = None
        self._calls: Counter[tuple[str, int]] = Counter()
        self._by_hand = by_hand if "gradient" in wanted else ()
        self._finite: list[tuple[str, Tensor]] = []
        self._kept = Kept(
            moments="input_covariance" in wanted,
            squares="input_norms" in wanted,
            sample=sample if "input_sample" in wanted else 0,
        )
        self._of_inputs = any(name.startswith("input_") for name in wanted)
        self._of_outputs = "output_gradient_covariance" in wanted

    def begin_batch(self, generator: torch.Generator) -> None:
        """Start a batch, whose rows draw their random keys from the generator."""
        self._keys = Keys(generator)
        self._calls.clear()

    def end_batch(self) -> None:
        """Settle which matrices have read the same."""
        self.sharing.end_batch()

    def on_read(self, reads: list[Read], out: Tensor) -> Tensor:
        """Count the reads of one product, and watch the gradient of its output."""
        matrix = reads[0].matrix  # one product, one matrix
        for read in reads:
            counts = (self.looked_up if read.rows is None else self.counts).setdefault(matrix.name, [0] * matrix.stack)
            for slot in range(read.slots.start, read.slots.stop):
                counts[slot] += read.count
            if self._of_inputs and read.rows is not None:
                self._input(read)
        if self.weights is None or not torch.is_grad_enabled():
            return out
        out = self.weights.anchored(matrix.name, out)
        if matrix.name in self._by_hand:
            pairs = _pairs_of(reads[0])
            out.register_hook(lambda g: self._gradient(matrix, pairs(g)))
        if self._of_outputs and reads[0].output_rows is not None:
            parts = [(read.slots, read.output_rows) for read in reads]  # not the reads: they hold the inputs
            out.register_hook(lambda g: self._output(matrix, parts, g))
        return out

    def check(self, name: str, total: Tensor) -> None:
        """Remember whether a sum is finite; `settle` looks at all of them at once."""
        self._finite.append((name, total.sum().isfinite()))

    def settle(self, what: str) -> None:
        """Raise ValueError if a sum since the last call is not finite, naming the first matrix that met it."""
        flags, self._finite = self._finite, []
        devices = {flag.device for _, flag in flags}
        finite = {device: iter(torch.stack([f for _, f in flags if f.device == device]).tolist()) for device in devices}
        for name, flag in flags:
            if not next(finite[flag.device]):
                raise ValueError(
                    f"the {what} of {name} has values that are not finite (NaN or infinite): look at that batch and at "
                    "the weights before it, or run the model in a wider dtype"
                )

    def _input(self, read: Read) -> None:
        matrix, slots = read.matrix, read.slots
        self._calls[matrix.name, slots.start] += 1
        # Layers that read as many rows in their n-th call get the same keys, so their samples hold the same tokens.
        salt = (slots.start, self._calls[matrix.name, slots.start])
        count = read.count * (slots.stop - slots.start)

        def new(stack: int) -> Statistics:
            return Statistics(self._kept, stack, matrix.shape[1], read.x)

        def fill(statistics: Statistics, slots: slice) -> None:
            assert read.rows is not None
            keys = self._keys(count, salt).to(read.x.device) if self._kept.sample else None
            with torch.no_grad():
                statistics.add(read.rows(), slots, keys)
            self.check(matrix.name, statistics.sum[slots])

        key = (self.sharing.identity(read.x), read.cut)
        self.sharing.read(matrix.name, key, slots, matrix.stack, new, fill)

    @torch.no_grad()
    def _output(self, matrix: Matrix, parts: list[tuple[slice, Callable[[Tensor], Tensor] | None]], g: Tensor) -> None:
        name = matrix.name
        if name not in self.outputs:
            self.outputs[name] = Statistics(Kept(moments=True), matrix.stack, matrix.shape[0], g)
        for slots, rows in parts:
            if rows is not None:
                self.outputs[name].add([rows(g)], slots)
        self.check(name, self.outputs[name].sum)

    @torch.no_grad()
    def _gradient(self, matrix: Matrix, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        for x, g in pairs:
            dtype = torch.float64 if g.dtype == torch.float64 else torch.float32
            G = g.to(dtype).T @ x.to(dtype)
            self.gradients[matrix.name] = self.gradients[matrix.name] + G if matrix.name in self.gradients else G
            self.check(matrix.name, G)


def _pairs_of(read: Read) -> Callable[[Tensor], Iterator[tuple[Tensor, Tensor]]]:
    """Gives, of an output's gradient, the rows (N, n) that the layer read, each beside its gradient (N, m).

    All rows count, as the mask of a batch does not change a gradient.
    """
    (m, n), x, rows, output_rows = read.matrix.shape, read.x.detach(), read.rows, read.output_rows
    if read.matrix.kind != "conv":
        return lambda g: iter([(x.reshape(-1, n), g.reshape(-1, m))])

    def pairs(g: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        assert rows is not None
        assert output_rows is not None
        chunks = [chunk for (chunk,) in rows()]
        return zip(chunks, output_rows(g)[0].split([len(chunk) for chunk in chunks]), strict=True)

    return pairs
