"""`Plan`: what would be compressed, how far, what it takes and what it loses, before anything is changed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from eckart.compression.allocations.candidates import Chosen
from eckart.compression.allocations.choosing import chosen_sizes, given_sizes
from eckart.compression.allocations.menus import standing_bytes
from eckart.compression.allocations.named import ALLOCATIONS
from eckart.compression.allocations.rules import Sizes, total_bytes
from eckart.compression.allocations.trying import layers_of, standing
from eckart.compression.beside_codes import advice, beside_codes, relative_error
from eckart.compression.compressed import Compressed, measured_errors, put
from eckart.compression.fitting.anchoring import anchored
from eckart.compression.fitting.learning import Data
from eckart.compression.fitting.storing import Store
from eckart.compression.methods import METHODS
from eckart.compression.pieces.piece import Piece
from eckart.compression.rows import Row, plan_row, table
from eckart.compression.settings import Settings


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """Sizes for the pieces of a model, and all that is needed to carry them out, or to choose others.

    Attributes:
        model: The dense model, untouched.
        method: A row of `METHODS`.
        keep: The share of the selected matrices' bytes that was asked for; None where ranks were given.
        sizes: Label of a piece → its size; the rank, where it is one matrix.
        pieces: What is decomposed together.
        settings: The numbers that the method's parts share.
        allocation: A row of `ALLOCATIONS`: which size for which piece.
        store: Keeps what was learned.
        data: What the model is run on.
        held_out: Batches on which allocations are compared and errors measured.
        tokens: Matrix name → rows that calibration saw.
        model_bytes: Bytes of all parameters and buffers of the dense model.
        left_out: Matrix name → why it stays dense whatever the budget.
        notes: What the user should know: too few tokens, matrices that the batches do not use.
    """

    model: nn.Module = field(repr=False)
    method: str
    keep: float | None
    sizes: Sizes = field(repr=False)
    pieces: tuple[Piece, ...] = field(repr=False)
    settings: Settings = field(repr=False)
    allocation: str
    data: Data = field(repr=False)
    store: Store = field(repr=False)
    held_out: tuple[Any, ...] = field(repr=False)
    tokens: Mapping[str, int] = field(repr=False)
    model_bytes: int = field(repr=False)
    left_out: Mapping[str, str] = field(repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False)

    def at(self, keep: float | None = None, *, ranks: Mapping[str, int] | None = None) -> "Plan":
        """The plan for another budget, or for given ranks; what was learned is used again.

        Args:
            keep: Stored bytes ÷ dense bytes of the selected matrices, above 0 and at most 1.
            ranks: Matrix name → rank, instead of `keep`; matrices that are not named stay dense.

        Raises:
            ValueError: Neither or both are given, `keep` is out of its range, or a name or rank does not fit.
            RuntimeError: The model is not the dense one any more.

        Example:
            >>> import eckart
            >>> plan = eckart.compress(nn.Sequential(nn.Linear(8, 8)), keep=0.5, method="svd", dry_run=True)
            >>> plan.at(keep=0.25).sizes, plan.at(ranks={"0": 3}).kept
            ({'0': 1}, 0.75)
        """
        if (keep is None) == (ranks is None):
            raise ValueError("keep, ranks: give one of the two")
        self._check_dense()
        if keep is not None:
            sizes = chosen_sizes(
                self.model, self.pieces, keep, ALLOCATIONS[self.allocation], self.settings, self.data, self.held_out
            )
        else:
            sizes = given_sizes(self.pieces, ranks or {})
        return replace(self, keep=keep, sizes=sizes)

    @property
    def losses(self) -> Mapping[str, float]:
        """Name of a candidate allocation → the held-out loss that its sizes gave; empty where none were compared."""
        return self.sizes.losses if isinstance(self.sizes, Chosen) else {}

    @property
    def dense_bytes(self) -> int:
        """Bytes of the selected matrices as they are."""
        return sum(piece.dense_bytes for piece in self.pieces)

    @property
    def bytes(self) -> int:
        """Bytes of what would stand in their places."""
        return total_bytes(self.pieces, self.sizes)

    @property
    def kept(self) -> float:
        """Stored bytes of the selected matrices ÷ their dense bytes."""
        return self.bytes / self.dense_bytes

    @property
    def kept_of_model(self) -> float:
        """Stored bytes of the whole model ÷ its bytes before, where some matrices may be compressed already."""
        before = sum(standing_bytes(piece) for piece in self.pieces)
        return (self.model_bytes - before + self.bytes) / self.model_bytes

    @property
    def error(self) -> float:
        """The predicted error of all pieces together, relative, in the method's metric."""
        return relative_error(self.pieces, self.sizes)

    def beside_codes(self) -> list[Row]:
        """This plan, plain int8 and plain int4 of the same matrices: name, kept, error (predicted, relative)."""
        return beside_codes(self.pieces, self.sizes)

    @property
    def remarks(self) -> tuple[str, ...]:
        """The notes, which of several allocations was taken, and where plain quantisation wins."""
        chosen = [str(self.sizes)] if isinstance(self.sizes, Chosen) else []
        return (*self.notes, *chosen, *advice(self.beside_codes()))

    def rows(self) -> list[Row]:
        """One row for each piece: its form, size, bytes and predicted error."""
        return [plan_row(piece, self.sizes[piece.label], self.tokens) for piece in self.pieces]

    def title(self, done: str) -> str:
        """One line: how many matrices, by which method, and what of their bytes and the model's is kept."""
        total = sum(len(piece.names) for piece in self.pieces)
        smaller = sum(len(piece.names) for piece in self.pieces if self.sizes[piece.label] < piece.full)
        return (
            f"{self.method}: {smaller} of {total} matrices {done}, {self.kept:.3f} of their bytes kept "
            f"({self.kept_of_model:.3f} of the model's)"
        )

    def report(self) -> str:
        """The plan as text: the totals, the remarks, and a table of the pieces."""
        return table(self.title("to compress"), self.rows(), self.remarks)

    def __str__(self) -> str:
        return self.title("to compress")

    def layers(self) -> dict[str, nn.Module]:
        """What is to stand in the matrices' places; the model is not touched.

        Raises:
            RuntimeError: The model is not the dense one any more.
        """
        self._check_dense()
        if METHODS[self.method].inputs == "anchored":
            return anchored(self.model, self.pieces, self.sizes, self.data, self.store)
        return layers_of(self.pieces, self.sizes)

    @contextmanager
    def standing(self) -> Iterator[nn.Module]:
        """The model with the plan's layers in their places, for as long as the block lasts; then dense as before.

        Raises:
            RuntimeError: The model is not the dense one any more.

        Example:
            >>> import eckart
            >>> model = nn.Sequential(nn.Linear(8, 8))
            >>> with eckart.compress(model, keep=0.5, method="svd", dry_run=True).standing():
            ...     type(model[0]).__name__
            'FactoredLinear'
            >>> type(model[0]).__name__
            'Linear'
        """
        with standing(self.model, self.layers()):
            yield self.model

    def apply(self) -> Compressed:
        """Compress the model, in place: the layers of the plan stand in the places of its matrices.

        What was learned of the matrices is dropped, but for their spectra.

        Returns:
            Compressed: the model, and for each matrix what it became and the error that was measured.

        Raises:
            RuntimeError: The model is not the dense one any more: a plan of it was applied before.

        Example:
            >>> import eckart
            >>> plan = eckart.compress(nn.Sequential(nn.Linear(8, 8)), keep=0.5, method="svd", dry_run=True)
            >>> plan.apply().model
            Sequential(
              (0): FactoredLinear(in_features=8, out_features=8, rank=2, bias=True)
            )
        """
        layers = self.layers()
        errors = measured_errors(self.model, self.pieces, layers, self.data, self.held_out)
        put(self.model, layers)
        if layers:
            self._forget()
        return Compressed(self.model, self, errors)

    def _forget(self) -> None:
        """The model is not the dense one any more, so nothing else can be built."""
        for piece in self.pieces:
            piece.forget()
        if isinstance(self.store, dict):
            self.store.clear()

    def _check_dense(self) -> None:
        if any(piece.forgotten for piece in self.pieces):
            raise RuntimeError("plan: one of this calibration was applied; compress a fresh copy of the dense model")
        modules = dict(self.model.named_modules(remove_duplicate=False))
        for piece in self.pieces:
            for name, matrix in piece.members.items():
                if matrix.module not in (modules.get(name), modules.get(name.rpartition(".")[0])):
                    raise RuntimeError(
                        f"plan: {name} of its model has been replaced since; compress a fresh copy of the dense model"
                    )
