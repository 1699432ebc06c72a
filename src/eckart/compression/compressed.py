"""What came of a plan: the model with its new layers, and how far each matrix's outputs have moved.

The measured error of a matrix is ‖(W − W')X‖_F / ‖W X‖_F on held-out inputs of the dense model, from their second
moment alone; the predicted one is the same in the plan's metric, on the calibration.
Paper: none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eckart.compression.files.guard import guard
from eckart.compression.fitting.learning import Data, observed
from eckart.compression.pieces.piece import Piece
from eckart.compression.rows import Row, table
from eckart.nn.replace import replace_all

if TYPE_CHECKING:
    from eckart.compression.plan import Plan


@dataclass(frozen=True, eq=False)
class Compressed:
    """A compressed model, and the plan that it came from.

    Args:
        model: The model, its layers replaced.
        plan: What was carried out.
        errors: Matrix name → relative error of its outputs on held-out inputs; of pieces of one matrix only.

    Example:
        >>> import eckart
        >>> done = eckart.compress(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), keep=0.5, method="svd")
        >>> done.kept, [row["size"] for row in done.rows()]
        (0.5, [2, 2])
    """

    model: nn.Module = field(repr=False)
    plan: "Plan" = field(repr=False)
    errors: Mapping[str, float] = field(repr=False)

    @property
    def kept(self) -> float:
        """Stored bytes of the selected matrices ÷ their dense bytes."""
        return self.plan.kept

    def rows(self) -> list[Row]:
        """The plan's rows, each with its measured_error: None where a piece changes several matrices together."""
        return [row | {"measured_error": self._measured(row)} for row in self.plan.rows()]

    def report(self) -> str:
        """What was done, as text: the totals, the remarks, and a table of the pieces."""
        return table(self.plan.title("compressed"), self.rows(), self.plan.remarks)

    def __str__(self) -> str:
        return self.plan.title("compressed")

    def _measured(self, row: Row) -> float | None:
        if row["form"] == "dense":
            return 0.0
        return self.errors.get(row["matrices"][0]) if len(row["matrices"]) == 1 else None


@torch.no_grad()
def measured_errors(
    model: nn.Module, pieces: Sequence[Piece], layers: Mapping[str, nn.Module], data: Data, held_out: Sequence[Any]
) -> dict[str, float]:
    """How far the outputs of each replaced matrix move on held-out inputs of the dense model.

    Args:
        model: The dense model.
        pieces: Its pieces.
        layers: Matrix name → what is to stand in its place.
        data: How the model is run.
        held_out: The batches; without any, nothing is measured.
    """
    alone = [piece for piece in pieces if len(piece.names) == 1 and piece.names[0] in layers]
    if not held_out or not alone:
        return {}
    matrices = {piece.names[0]: piece.members[piece.names[0]] for piece in alone}
    errors = {}
    for seen in observed(model, alone, ["input_covariance"], Data(held_out, forward=data.forward)):
        for name, each in seen.items():
            W, C = matrices[name].weight(), each.input_second_moment
            if C is not None:
                whole = _energy(W, C)
                lost = _energy(W - _weight(layers[name], W), C)
                errors[name] = (lost / whole) ** 0.5 if whole > 0 else 0.0
    return errors


def put(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """The layers stand in their places, for good, or after an error none; what was frozen stays so."""
    old = replace_all(model, layers)
    frozen = {name for name, module in old.items() if not any(p.requires_grad for p in module.parameters())}
    for name in sorted(layers, key=lambda name: name not in frozen):  # a basis trains if one of its layers does
        layers[name].requires_grad_(name not in frozen)
    if layers:
        guard(model)


def _weight(layer: nn.Module, W: Tensor) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.reshape(W.shape)


def _energy(W: Tensor, C: Tensor) -> float:
    """tr(W C Wᵀ)."""
    W = W.to(C.dtype)
    return float(((W @ C) * W).sum().clamp_min(0))
