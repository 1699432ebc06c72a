"""Which size for which piece, under a budget of bytes.

| allocation | rule | source |
|---|---|---|
| uniform | every piece keeps the same share of its bytes | SVD-LLM, arXiv 2403.07378 |
| energy | every piece keeps the same share of its energy Σσ² | arXiv 1907.08620 and others |
| hulls | least Σ w σ² that the budget buys, on convex hulls with the dense point (`linalg.allocate`) | ours |

The energies of different pieces are comparable where the metric makes them so: with output gradients σ² is the change
of the loss, to second order. `hulls` of a metric without them favours what has large outputs.
Paper: none.
"""

from collections.abc import Callable, Mapping, Sequence

from eckart.compression.piece import Piece
from eckart.compression.settings import Settings
from eckart.linalg import allocate

Sizes = dict[str, int]  # label of a piece → its size
Trial = Callable[[Mapping[str, int]], float]  # held-out loss when the pieces have these sizes
Allocation = Callable[[Sequence[Piece], float, Settings, Trial], Sizes]


def uniform(pieces: Sequence[Piece], keep: float, settings: Settings, trial: Trial) -> Sizes:
    """The same share for every piece."""
    return {piece.label: piece.size_for(keep, settings.multiple) for piece in pieces}


def energy(pieces: Sequence[Piece], keep: float, settings: Settings, trial: Trial) -> Sizes:
    """The same share of the energy for every piece, as large as the budget allows."""
    budget = keep * sum(piece.dense_bytes for piece in pieces)
    low, high = 0.0, 1.0
    for _ in range(50):
        share = (low + high) / 2
        sizes = {piece.label: _reaching(piece, share, settings.multiple) for piece in pieces}
        low, high = (share, high) if total_bytes(pieces, sizes) <= budget else (low, share)
    return {piece.label: _reaching(piece, low, settings.multiple) for piece in pieces}


def hulls(
    pieces: Sequence[Piece], keep: float, settings: Settings, trial: Trial, *, power: float = 1.0, protect: float = 1.0
) -> Sizes:
    """The sizes that leave the least weighted error.

    Args:
        pieces: The pieces, which have learned.
        keep: Share of their dense bytes.
        settings: Its floor and multiple count.
        trial: Not needed here.
        power: The energy of a piece counts to this power: below 1 its size matters less, at 0 only its shape.
        protect: Weight of errors of matrices that other heads share (`settings.options["shared_heads"]`, names).
    """
    shared = settings.options.get("shared_heads", ())
    spectra = {piece.label: piece.spectrum for piece in pieces}
    totals = {label: float(S.square().sum()) or 1.0 for label, S in spectra.items()}
    weights = {label: total ** (power - 1) for label, total in totals.items()}
    for piece in pieces:
        if not set(piece.names).isdisjoint(shared):
            weights[piece.label] *= protect
    floors = {piece.label: min(piece.size_for(settings.floor * keep), piece.full) for piece in pieces}
    numbers = sum((keep * piece.dense_bytes - piece.fixed_bytes) / piece.itemsize for piece in pieces)
    return allocate(
        spectra,
        {piece.label: piece.shape for piece in pieces},
        numbers,
        cost=pieces[0].cost,
        weights=weights,
        floor=floors,
        multiple=settings.multiple,
    )


def total_bytes(pieces: Sequence[Piece], sizes: Mapping[str, int]) -> int:
    """What all pieces take at their sizes."""
    return sum(piece.bytes(sizes[piece.label]) for piece in pieces)


def _reaching(piece: Piece, share: float, multiple: int) -> int:
    """The least size that keeps a share of the energy, full where the product would take no less than dense."""
    energies = piece.spectrum.square().cumsum(0)
    reached = int((energies < share * energies[-1]).sum()) + 1
    size = min(-(-reached // multiple) * multiple, piece.full)
    return piece.full if piece.bytes(size) >= piece.dense_bytes else size
