"""Calibration: tell every piece what its matrices read and what the loss says of their outputs, in bounded memory.

With a chain of blocks (`nn.blocks`) the batches' hidden states walk through the model once, and each block's
covariances are held only until its pieces have learned; other matrices are observed in passes of the whole model.
Output gradients come first, from `gradient_batches` of the batches. In both, as many at a time as fit in `memory`.
What a piece has learned is kept in `store`, from which a run that was interrupted goes on.

Cost: one pass over the batches, one backward pass over `gradient_batches` of them for each group, one decomposition
for each piece, several side by side.
Paper: none.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from eckart.compression.fitting.storing import Store
from eckart.compression.pieces.piece import Piece, of_each
from eckart.compression.pieces.rounding import ROUNDING, rounding_energies
from eckart.nn import Matrix, Observation, Progress, observe
from eckart.nn.blocks import Chain, find_chain

MEMORY = 2**31  # bytes of covariances held at a time: of output gradients, and of inputs outside the blocks
TOKENS = "tokens"  # of what is stored of a piece: the rows that each of its matrices read
T = TypeVar("T")
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Data:
    """What the model is run on.

    Args:
        batches: As `nn.observe` takes them.
        loss: (output, batch) → scalar, by which the held-out loss is measured; None takes the output's own.
        gradient_loss: Whose gradients at the outputs are taken; None: `loss`.
        forward: (model, batch) → output; None feeds the batch as it is.
        gradient_batches: From how many of the batches output gradients are taken; None: all.
        progress: Called as progress(done, total, label).
    """

    batches: Sequence[Any]
    loss: Loss | None = None
    gradient_loss: Loss | None = None
    forward: Callable[[nn.Module, Any], Any] | None = None
    gradient_batches: int | None = None
    progress: Progress | None = None

    def told(self, done: int, total: int, label: str) -> None:
        """Tell the progress, if anyone listens."""
        if self.progress is not None:
            self.progress(done, total, label)


def learn(
    model: nn.Module, pieces: Sequence[Piece], wanted: Sequence[str], data: Data, store: Store, *, memory: int = MEMORY
) -> dict[str, int]:
    """Have every piece learn.

    Args:
        model: The dense model.
        pieces: What is to learn; those that the store knows learn from it.
        wanted: What their metric asks of `nn.observe`.
        data: The calibration batches.
        store: Takes what each piece has learned.
        memory: Bytes of covariances held at a time: of output gradients, and of inputs outside the blocks.

    Returns:
        Matrix name → rows that it read; a matrix that the batches never use has 0.
    """
    tokens: dict[str, int] = {}
    fresh = []
    for piece in pieces:
        if piece.label in store:
            device = next(iter(piece.members.values())).weight().device
            piece.learned = {name: tensor.to(device) for name, tensor in store[piece.label].items()}
            tokens |= zip(piece.names, piece.learned.pop(TOKENS).tolist(), strict=True)
        else:
            fresh.append(piece)
    inputs = [name for name in wanted if name.startswith("input_")]
    gradients = "output_gradient_covariance" in wanted
    for group in _groups(fresh, _output_bytes, memory) if gradients else ([fresh] if fresh else []):
        outputs = _output_gradients(model, group, data) if gradients else {}
        pending = {piece.label: set(piece.names) for piece in group}
        seen: dict[str, Observation] = {}
        for found in observed(model, group, inputs, data, memory=memory):
            seen |= {name: _joined(each, outputs.get(name)) for name, each in found.items()}
            ready = [piece for piece in group if piece.label in pending and pending[piece.label] <= seen.keys()]
            tokens |= _teach(ready, seen, store)
            for piece in ready:
                del pending[piece.label]
                for name in piece.names:
                    del seen[name]
        rest = [piece for piece in group if piece.label in pending]
        seen |= {name: each for name, each in outputs.items() if name not in seen}
        tokens |= _teach(rest, seen, store)
    return tokens


def _teach(pieces: Sequence[Piece], seen: dict[str, Observation], store: Store) -> dict[str, int]:
    """Have pieces learn, keep that with the rows that their matrices read, and give those."""

    def teach(piece: Piece) -> None:
        piece.learn(seen)
        if piece.of_outputs:
            piece.learned[ROUNDING] = rounding_energies(piece, seen)

    for _ in of_each(teach, pieces):
        pass
    tokens = {name: seen[name].tokens if name in seen else 0 for piece in pieces for name in piece.names}
    for piece in pieces:
        store[piece.label] = piece.learned | {TOKENS: torch.tensor([tokens[name] for name in piece.names])}
    return tokens


def _groups(each: Iterable[T], size: Callable[[T], int], memory: int) -> Iterator[list[T]]:
    """In order, as many at a time as fit."""
    group: list[T] = []
    held = 0
    for one in each:
        if group and held + size(one) > memory:
            yield group
            group, held = [], 0
        group.append(one)
        held += size(one)
    if group:
        yield group


def _output_bytes(piece: Piece) -> int:
    """What the covariances of its matrices' output gradients take."""
    return sum(4 * matrix.stack * matrix.shape[0] ** 2 for matrix in piece.members.values())


def _members(pieces: Iterable[Piece]) -> dict[str, Matrix]:
    return {name: matrix for piece in pieces for name, matrix in piece.members.items()}


def _output_gradients(model: nn.Module, pieces: Sequence[Piece], data: Data) -> dict[str, Observation]:
    batches, loss = data.batches[: data.gradient_batches], data.gradient_loss or data.loss
    options: dict[str, Any] = {"loss": loss, "forward": data.forward, "progress": data.progress}
    return _seen(model, list(_members(pieces)), batches, ["output_gradient_covariance"], **options)


def observed(
    model: nn.Module, pieces: Sequence[Piece], wanted: Sequence[str], data: Data, *, memory: int = MEMORY
) -> Iterator[dict[str, Observation]]:
    """The inputs' statistics of the pieces' matrices, block by block, then of those outside the blocks, as they fit."""
    if not wanted:
        return
    members = _members(pieces)
    names = list(members)
    blocks = find_chain(model, data.batches[0], data.forward) or []
    inside = {name for name in names for path in blocks if name.startswith(f"{path}.")}
    if inside:
        yield from _along(Chain(model, blocks, data.batches, data.forward), inside, wanted, data)
    outside = [name for name in names if name not in inside]
    for group in _groups(outside, lambda name: 4 * members[name].shape[1] ** 2, memory):
        yield _seen(model, group, data.batches, wanted, forward=data.forward, progress=data.progress)


def _along(chain: Chain, names: set[str], wanted: Sequence[str], data: Data) -> Iterator[dict[str, Observation]]:
    """Observe the blocks one after another."""
    hidden = list(chain.hidden)
    last = max(i for i, path in enumerate(chain.names) if any(name.startswith(f"{path}.") for name in names))
    for index, path in enumerate(chain.names[: last + 1]):
        mine = [name.removeprefix(f"{path}.") for name in names if name.startswith(f"{path}.")]

        def forward(block: nn.Module, batch: dict[str, Any], index: int = index) -> Tensor:
            hidden[batch["number"]] = chain.run(index, batch["number"], hidden[batch["number"]], block)
            return hidden[batch["number"]]

        fed = [{**masks(batch, chain.model), "number": number} for number, batch in enumerate(chain.batches)]
        if mine:
            seen = _seen(chain.block(index), mine, fed, wanted, forward=forward)
            yield {f"{path}.{name}": replace(each, name=f"{path}.{name}") for name, each in seen.items()}
        else:
            for batch in fed:
                forward(chain.block(index), batch)
        data.told(index + 1, last + 1, "calibrating")


def _seen(
    model: nn.Module, names: Sequence[str], batches: Sequence[Any], wanted: Sequence[str], **options: Any
) -> dict[str, Observation]:
    """What `observe` tells of these matrices alone: as patterns, short names match longer ones too."""
    seen = observe(model, batches, wanted, targets=names, **options)
    return {name: seen[name] for name in names if name in seen}


def masks(batch: Any, model: nn.Module) -> dict[str, Any]:
    """What says which rows of a batch are padding, for `Padding` where a block alone is run."""
    given = dict(batch) if isinstance(batch, Mapping) else {}
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) is True and "labels" in given:
        given.setdefault("decoder_input_ids", given["labels"])
    return {name: value for name, value in given.items() if isinstance(value, Tensor)}


def _joined(inputs: Observation, outputs: Observation | None) -> Observation:
    """What was seen of a matrix's inputs, with what was seen of its outputs."""
    G = None if outputs is None else outputs.output_gradient_second_moment
    return replace(inputs, output_gradient_second_moment=G)
