"""Fit each layer to what the compressed layers before it give, so that it makes up for what they lost.

    minimise ‖W X − B A X̂‖_F      X (n, N) what the dense model reads there, X̂ what the compressed one does

Both models walk through the blocks side by side (`nn.blocks`). Within a block the layers that read the same (q, k and
v; o; gate and up; down) follow one another: the moments C = X̂X̂ᵀ/N and M = XX̂ᵀ/N are taken with all earlier ones
compressed. Fitted at once, each would make up for the same loss, and all together for several times that. The model
itself is not touched. What lies outside the blocks, or cannot be moved to other inputs, is built as it was learned.

Cost: two passes over the batches and two partial ones for each stage, one decomposition for each matrix.
Paper: AA-SVD's objective (anchored inputs, dense outputs); it then refines each block by gradient steps, we do not.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial

from torch import Tensor, nn

from eckart.compression.allocations.trying import layers_of
from eckart.compression.fitting.learning import Data, masks
from eckart.compression.fitting.storing import Store
from eckart.compression.pieces.matrix_piece import MatrixPiece
from eckart.compression.pieces.piece import Piece, of_each
from eckart.nn import replace
from eckart.nn.batches import Padding
from eckart.nn.blocks import Chain, find_chain
from eckart.nn.crossing import Crossed, call_order, observe_crossed


def anchored(
    model: nn.Module, pieces: Sequence[Piece], sizes: Mapping[str, int], data: Data, store: Store
) -> dict[str, nn.Module]:
    """The layers of all pieces, each block fitted on the compressed prefix.

    Args:
        model: The dense model, which stays as it is.
        pieces: Its pieces, which have learned.
        sizes: Label → size.
        data: The calibration batches.
        store: Takes what each fit gave, from which an interrupted run goes on.

    Returns:
        Matrix name → layer.

    Warns:
        UserWarning: The model has no chain of blocks, so that nothing is fitted.
    """
    blocks = find_chain(model, data.batches[0], data.forward) if data.batches else None
    if blocks is None:
        warnings.warn(
            f"{type(model).__name__} has no chain of blocks that run once each and in order, each on what the one "
            "before gave as its first argument: its layers are not fitted to a compressed prefix, but to dense inputs",
            stacklevel=4,
        )
        return layers_of(pieces, sizes)
    chain = Chain(model, blocks, data.batches, data.forward)
    both = _Both(chain, [Padding(masks(batch, model)) for batch in chain.batches])
    layers: dict[str, nn.Module] = {}
    before: list[tuple[str, int]] = []  # the sizes of the pieces so far, in order
    for index, path in enumerate(blocks):
        mine = [piece for piece in pieces if all(name.startswith(f"{path}.") for name in piece.names)]
        twin = deepcopy(chain.block(index))
        for stage in _stages(both, index, [piece for piece in mine if sizes[piece.label] < piece.full]):
            made = _fitted(both, index, twin, stage, sizes, store, _digest(before))
            before += [(piece.label, sizes[piece.label]) for piece in stage]
            for name, layer in made.items():
                replace(twin, name.removeprefix(f"{path}."), layer)
            layers |= made
        both.step(index, twin)
        data.told(index + 1, len(blocks), "fitting to the compressed prefix")
    rest = [piece for piece in pieces if not layers.keys() & set(piece.names)]
    return layers_of(rest, sizes) | layers


class _Both:
    """The hidden states of all batches, in the dense model and in the compressed one."""

    def __init__(self, chain: Chain, paddings: Sequence[Padding]) -> None:
        self.chain, self.paddings = chain, paddings
        self.dense, self.changed = list(chain.hidden), list(chain.hidden)

    def observe(self, index: int, twin: nn.Module, names: Sequence[str]) -> dict[str, Crossed]:
        """The moments of some layers of a block."""
        runs = (
            (partial(self._run, index, i, self.dense[i]), partial(self._run, index, i, self.changed[i]), padding)
            for i, padding in enumerate(self.paddings)
        )
        return observe_crossed(self.chain.block(index), twin, names, runs)

    def order(self, index: int, names: Sequence[str]) -> list[list[str]]:
        """The layers of a block as they are called, those that read the same together; what no batch calls is left out.

        Batches are run until all are found: an expert may be idle in some.
        """
        stages: list[list[str]] = []
        missing = list(names)
        for number, hidden in enumerate(self.dense):
            if not missing:
                break
            run = partial(self._run, index, number, hidden)
            stages += call_order(self.chain.block(index), missing, run)
            missing = [name for name in missing if not any(name in stage for stage in stages)]
        return stages

    def _run(self, index: int, number: int, hidden: Tensor, block: nn.Module) -> Tensor:
        return self.chain.run(index, number, hidden, block)

    def step(self, index: int, twin: nn.Module) -> None:
        """Both go on through a block."""
        for number in range(len(self.paddings)):
            self.dense[number] = self.chain.run(index, number, self.dense[number])
            self.changed[number] = self.chain.run(index, number, self.changed[number], twin)


def _stages(both: _Both, index: int, pieces: Sequence[Piece]) -> list[list[Piece]]:
    """The pieces of a block that are fitted together, stage by stage; at the end those that cannot be fitted."""
    path = f"{both.chain.names[index]}."
    moved = {piece.names[0].removeprefix(path): piece for piece in pieces if isinstance(piece, MatrixPiece)}
    stages: list[list[Piece]] = [[moved[name] for name in names] for names in both.order(index, list(moved))]
    staged = {piece.label for stage in stages for piece in stage}
    return [stage for stage in (*stages, [piece for piece in pieces if piece.label not in staged]) if stage]


def _digest(sizes: Sequence[tuple[str, int]]) -> str:
    """What tells one compressed prefix from another: a fit belongs to its own alone."""
    return hashlib.sha256(repr(sizes).encode()).hexdigest()[:16]


def _fitted(
    both: _Both,
    index: int,
    twin: nn.Module,
    pieces: Sequence[Piece],
    sizes: Mapping[str, int],
    store: Store,
    prefix: str,
) -> dict[str, nn.Module]:
    """The layers of one stage's pieces, after a prefix."""
    path = f"{both.chain.names[index]}."
    moved = {piece.names[0].removeprefix(path): piece for piece in pieces if isinstance(piece, MatrixPiece)}
    keys = {name: f"{piece.label}@{sizes[piece.label]} after {prefix}" for name, piece in moved.items()}
    missing = [name for name in moved if keys[name] not in store]
    if missing:
        seen = both.observe(index, twin, missing)
        reached = [name for name in missing if name in seen]
        fitted = {piece.label: name for name, piece in moved.items()}
        pairs = of_each(
            lambda piece: piece.refit(seen[fitted[piece.label]], sizes[piece.label]), [moved[name] for name in reached]
        )
        for name, pair in zip(reached, pairs, strict=True):
            store[keys[name]] = pair
    layers: dict[str, nn.Module] = {}
    for name, piece in moved.items():
        if keys[name] in store:  # else no batch calls it as a module
            device = piece.matrix.weight().device
            layers |= piece.layers(**{factor: tensor.to(device) for factor, tensor in store[keys[name]].items()})
    return layers_of([piece for piece in pieces if not layers.keys() & set(piece.names)], sizes) | layers
