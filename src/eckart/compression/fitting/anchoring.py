"""Fit each block to what the compressed blocks before it give, so that it makes up for what they lost.

    minimise ‖W X − B A X̂‖_F      X (n, N) what the dense model reads there, X̂ what the compressed one does

Both models walk through the blocks side by side (`nn.blocks`); in each block the moments C = X̂X̂ᵀ/N and M = XX̂ᵀ/N of
all its matrices are taken with the block still dense on X̂, its matrices are fitted, and both go on. The model itself
is not touched. What lies outside the blocks, or cannot be moved to other inputs, is built as it was learned.

Cost: four passes over the batches, one decomposition for each matrix.
Paper: AA-SVD's objective (anchored inputs, dense outputs); it then refines each block by gradient steps, we do not.
"""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from eckart.compression.allocations.trying import layers_of
from eckart.compression.fitting.learning import Data, masks
from eckart.compression.fitting.storing import Store
from eckart.compression.pieces.matrix_piece import MatrixPiece
from eckart.compression.pieces.piece import Piece
from eckart.linalg import map_side_by_side
from eckart.nn import replace
from eckart.nn.batches import Padding
from eckart.nn.blocks import Chain, find_chain
from eckart.nn.crossing import Crossed, observe_crossed


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
    before: list[tuple[str, int]] = []  # the sizes of the pieces in the blocks so far
    for index, path in enumerate(blocks):
        mine = [piece for piece in pieces if all(name.startswith(f"{path}.") for name in piece.names)]
        twin = deepcopy(chain.block(index))
        made = _fitted(both, index, twin, mine, sizes, store, _digest(before))
        before += [(piece.label, sizes[piece.label]) for piece in mine]
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
        self._next: dict[int, Tensor] = {}  # what the dense block gave while it was observed

    def observe(self, index: int, twin: nn.Module, names: Sequence[str]) -> dict[str, Crossed]:
        """The moments of some layers of a block."""

        def run_dense(number: int) -> Callable[[nn.Module], Any]:
            def run(block: nn.Module) -> None:
                self._next[number] = self.chain.run(index, number, self.dense[number], block)

            return run

        def run_twin(number: int) -> Callable[[nn.Module], Any]:
            return lambda block: self.chain.run(index, number, self.changed[number], block)

        runs = ((run_dense(number), run_twin(number), padding) for number, padding in enumerate(self.paddings))
        return observe_crossed(self.chain.block(index), twin, names, runs)

    def step(self, index: int, twin: nn.Module) -> None:
        """Both go on through a block."""
        for number in range(len(self.paddings)):
            if number in self._next:
                self.dense[number] = self._next.pop(number)
            else:
                self.dense[number] = self.chain.run(index, number, self.dense[number])
            self.changed[number] = self.chain.run(index, number, self.changed[number], twin)


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
    """The layers of one block's pieces, after a prefix."""
    todo = [piece for piece in pieces if sizes[piece.label] < piece.full]
    path = both.chain.names[index]
    moved = {piece.names[0].removeprefix(f"{path}."): piece for piece in todo if isinstance(piece, MatrixPiece)}
    keys = {name: f"{piece.label}@{sizes[piece.label]} after {prefix}" for name, piece in moved.items()}
    missing = [name for name in moved if keys[name] not in store]
    if missing:
        seen = both.observe(index, twin, missing)
        reached = [name for name in missing if name in seen]
        pairs = map_side_by_side(lambda name: moved[name].refit(seen[name], sizes[moved[name].label]), reached)
        for name, pair in zip(reached, pairs, strict=True):
            store[keys[name]] = pair
    layers: dict[str, nn.Module] = {}
    for name, piece in moved.items():
        if keys[name] in store:  # else no batch calls it as a module
            device = piece.matrix.weight().device
            layers |= piece.layers(**{factor: tensor.to(device) for factor, tensor in store[keys[name]].items()})
    return layers_of([piece for piece in todo if not layers.keys() & set(piece.names)], sizes) | layers
