"""What plain quantisation of the same matrices would lose, in the same metric: what low rank is to be compared with.

    E ‖G^½ E C^½‖² = Σ_ij (s_ij² / 12) G_ii C_jj       E = W − Q(W),  s_ij = max|block of w_ij| / L,  L = 127 or 7

Rounding to nearest leaves errors that are as good as uniform and uncorrelated, so the diagonals of both metrics tell
what it loses, from one pass over the weights. Codes are those of `linalg.quantize`, a scale for each 64 entries.
Paper: the model of the rounding error is Bennett's (1948).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from eckart.compression.pieces.piece import Piece, working
from eckart.nn import Matrix, Observation

ROUNDING = "rounding"  # of what a piece has learned: `rounding_energy`
BLOCK = 64  # entries that share a scale
LEVELS = {8: 127, 4: 7}  # bits → the largest code


def rounding_energy(piece: Piece, seen: Mapping[str, Observation]) -> Tensor:  # () float64
    """Σ max|block|² G_ii C_jj / 12 of all matrices of a piece: over L² it is the energy that codes up to L lose."""
    return torch.stack([_energy(piece, matrix, seen) for matrix in piece.members.values()]).sum()


def rounded_error(pieces: Sequence[Piece], bits: int) -> float:
    """The relative error of plain codes for all matrices of some pieces, as the calibration has it."""
    whole = sum(piece.energy for piece in pieces)
    lost = sum(float(piece.learned[ROUNDING]) for piece in pieces) / LEVELS[bits] ** 2
    return (lost / whole) ** 0.5 if whole else 0.0


def rounded_bytes(piece: Piece, bits: int) -> int:
    """What the codes and the scales of all matrices of a piece take."""
    counts = [m * n for m, n in (matrix.shape for matrix in piece.members.values())]
    return sum(-(-count * bits // 8) + 4 * -(-count // BLOCK) for count in counts)


def _energy(piece: Piece, matrix: Matrix, seen: Mapping[str, Observation]) -> Tensor:  # ()
    W = working(matrix)
    C, G = (None if M is None else M.diagonal(dim1=-2, dim2=-1) for M in piece.covariances(matrix, seen))
    weights = torch.ones_like(W) if C is None else C.to(W).expand_as(W)
    if G is not None:
        weights = weights * G.to(W).unsqueeze(-1)
    blocks, weights = (_blocks(each.flatten()) for each in (W, weights))
    return (blocks.abs().amax(-1).double().square() * weights.sum(-1).double()).sum() / 12


def _blocks(flat: Tensor) -> Tensor:  # (N,) -> (⌈N/64⌉, 64)
    return pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
