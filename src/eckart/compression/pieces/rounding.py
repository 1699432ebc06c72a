"""What plain rounding of the same matrices to few bits would lose, in the same metric, to compare low rank with.

    ‖G^½ E C^½‖² ≈ Σ_ij e_ij² G_ii C_jj       E = W − Q(W), Q to the nearest code, a scale for each 64 entries

Rounding errors are as good as uncorrelated, so the diagonals of both metrics tell what they cost.
Paper: none; rounding to nearest is the baseline of GPTQ (arXiv 2210.17323) and others.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from eckart.compression.pieces.piece import Piece, working
from eckart.linalg import dequantize, quantize
from eckart.nn import Matrix, Observation

ROUNDING = "rounding"  # of what a piece has learned: `rounding_energies`
BITS = (8, 4)
BLOCK = 64  # entries that share a scale


def rounding_energies(piece: Piece, seen: Mapping[str, Observation]) -> Tensor:  # (2,) float64
    """The squared errors of all matrices of a piece in 8 and in 4 bits."""
    return torch.stack([_energies(piece, matrix, seen) for matrix in piece.members.values()]).sum(0)


def rounded_error(pieces: Sequence[Piece], bits: int) -> float:
    """The relative error of plain codes for all matrices of some pieces, as the calibration has it."""
    whole = sum(piece.energy for piece in pieces)
    lost = sum(float(piece.learned[ROUNDING][BITS.index(bits)]) for piece in pieces)
    return (lost / whole) ** 0.5 if whole else 0.0


def rounded_bytes(piece: Piece, bits: int) -> int:
    """What the codes and the scales of all matrices of a piece take (as `nn.QuantizedLinear` stores them)."""
    counts = [m * n for m, n in (matrix.shape for matrix in piece.members.values())]
    return sum(-(-count * bits // 8) + piece.itemsize * -(-count // BLOCK) for count in counts)


def _energies(piece: Piece, matrix: Matrix, seen: Mapping[str, Observation]) -> Tensor:  # (2,)
    W = working(matrix)
    columns, rows = (None if M is None else M.diagonal(dim1=-2, dim2=-1) for M in piece.covariances(matrix, seen))
    found = []
    for bits in BITS:
        squares = (W - dequantize(quantize(W, bits, block=BLOCK), W.dtype)).square()
        of_rows = squares.sum(-1) if columns is None else squares @ columns.to(W)
        found.append((of_rows if rows is None else of_rows * rows.to(W)).double().sum())
    return torch.stack(found)
