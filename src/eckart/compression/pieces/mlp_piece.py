"""An MLP with fewer neurons, which still gives its outputs best: plain, smaller layers.

    y = W_down h,  h = act(W_gate x) ∘ W_up x  or  act(W_up x),      h (f,) the neurons
    y ≈ V h_J,     V = W_down C_{:J} C_JJ⁻¹,                         C (f, f) the covariance of the neurons

The s neurons J are chosen one after another, each to remove most of the error (`linalg.nystrom`): V makes up for the
others, so the error of every size is known and least for its J. The rows J of up and gate stay as they are. If down has
a bias, C is taken around the mean μ of h, and (W_down − V S_J) μ goes into that bias.

An MLP takes s·(inputs of up and gate + outputs of down) numbers. Cost: f³ flops, and s³ for a size.
Paper: MoDeGPT (arXiv 2408.09632) takes the neurons of the largest ridge leverage, in which W_down does not enter and
where twins tie; the order and the bias are ours.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from eckart.compression.metrics import Metric
from eckart.compression.pieces.piece import Piece, bias_of, working
from eckart.compression.settings import Settings
from eckart.linalg import nystrom, nystrom_weight
from eckart.nn import Matrix, Observation
from eckart.nn.compressed_linear import to_linear


class MlpPiece(Piece):
    """The matrices of one MLP; its size is the number of neurons.

    Args:
        inner: Those whose outputs are the neurons: up, or gate and up; (f, n) each.
        down: The one that reads them, (m, f).
        settings: See `Settings`.
        metric: In which error the neurons are best.

    Raises:
        ValueError: They do not fit together.
    """

    form = "neurons"

    def __init__(self, inner: Sequence[Matrix], down: Matrix, settings: Settings, metric: Metric) -> None:
        super().__init__([*inner, down], settings, metric)
        self.inner, self.down = tuple(inner), down
        if any(matrix.shape[0] != down.shape[1] for matrix in inner):
            shapes = {name: matrix.shape for name, matrix in self.members.items()}
            raise ValueError(f"inner: {shapes} are no MLP: what the last reads is what the others write")

    @property
    def of_outputs(self) -> bool:
        """Only with output gradients do errors of outputs of several kinds add up."""
        return "output_gradient_covariance" in self.metric.wanted

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers that one neuron takes, and the neurons."""
        return self.down.shape[0] + sum(matrix.shape[1] for matrix in self.inner), self.down.shape[1]

    @property
    def full(self) -> int:
        return self.shape[1]

    def learn(self, seen: Mapping[str, Observation]) -> None:
        observed = self.observed(self.down, seen)
        C, G = self.covariances(self.down, seen)
        learned: dict[str, Tensor] = {}
        if C is not None and observed.covariance is not None and bias_of(self.down) is not None:
            mean = observed.mean.double()
            C = C.double() - (1 - self.settings.shrink) * torch.outer(mean, mean)  # the same shrinking, around the mean
            C = C.to(observed.covariance.dtype)
            learned["mean"] = observed.mean
        order, F, L, errors = nystrom(working(self.down), input_covariance=C, output_covariance=G)
        spectrum = _falling(-errors.diff()).sqrt()
        self.learned = learned | {"order": order, "F": F, "L": L, "errors": errors, "spectrum": spectrum}

    def bytes(self, size: int) -> int:
        return size * self.shape[0] * self.itemsize

    @property
    def energy(self) -> float:
        return float(self.learned["errors"][0])

    def error(self, size: int) -> float:
        return (float(self.learned["errors"][size]) / self.energy) ** 0.5 if self.energy else 0.0

    def build(self, size: int) -> dict[str, nn.Module]:
        if size == self.full:
            return {}
        kept = self.learned["order"][:size]
        layers: dict[str, nn.Module] = {}
        for matrix in self.inner:
            bias = bias_of(matrix)
            layers[matrix.name] = _smaller(matrix, matrix.weight()[kept], None if bias is None else bias[kept])
        V = nystrom_weight(self.learned["F"], self.learned["L"], size)
        W, bias = self.down.weight().detach(), bias_of(self.down)
        if bias is not None and "mean" in self.learned:
            mean = self.learned["mean"].to(V.dtype)
            bias = (bias.detach().to(V.dtype) + W.to(V.dtype) @ mean - V @ mean[kept]).to(W.dtype)
        layers[self.down.name] = _smaller(self.down, V.to(W.dtype), bias)
        return layers


def _smaller(matrix: Matrix, W: Tensor, bias: Tensor | None) -> nn.Linear:
    """A layer that remembers, for the files, of what shape the dense one was."""
    layer = to_linear(W, bias)
    layer.dense_shape = matrix.shape  # type: ignore[assignment]
    return layer


def _falling(energies: Tensor) -> Tensor:  # (f,) -> (f,)
    """The nearest that never grows: where a value is below the next ones, all of them become their mean.

    Its sums from an index on are the lower convex hull of those of `energies`, which is what allocations go by.
    """
    runs: list[tuple[float, int]] = []
    for energy in energies.tolist():
        run = (max(energy, 0.0), 1)
        while runs and runs[-1][0] * run[1] < run[0] * runs[-1][1]:
            before = runs.pop()
            run = (before[0] + run[0], before[1] + run[1])
        runs.append(run)
    means = torch.tensor([total / count for total, count in runs], dtype=torch.float64)
    return means.repeat_interleave(torch.tensor([count for _, count in runs]))
