"""A plan beside plain quantisation of the same matrices: what each of them keeps and loses.

Low rank computes less, codes take less: where bytes are all that counts, few bits often win, and a plan says so.
Paper: none; that 8 bits lose less than a low rank of the same bytes is what reruns of SVD-LLM and others show.
"""

from collections.abc import Mapping, Sequence

from eckart.compression.allocations.rules import total_bytes
from eckart.compression.pieces.piece import Piece
from eckart.compression.pieces.rounding import BITS, ROUNDING, rounded_bytes, rounded_error
from eckart.compression.rows import Row


def beside_codes(pieces: Sequence[Piece], sizes: Mapping[str, int]) -> list[Row]:
    """The plan's sizes and plain codes.

    Returns:
        One row each of the plan, int8 and int4: name, kept (of the dense bytes), error (relative, predicted). None of
        them where nothing is compressed, or where errors cannot be compared (`Piece.of_outputs`).
    """
    if not any(sizes[piece.label] < piece.full for piece in pieces):
        return []
    if any(ROUNDING not in piece.learned for piece in pieces):
        return []
    dense = sum(piece.dense_bytes for piece in pieces)
    rows: list[Row] = [
        {"name": "this plan", "kept": total_bytes(pieces, sizes) / dense, "error": relative_error(pieces, sizes)}
    ]
    for bits in BITS:
        kept = sum(rounded_bytes(piece, bits) for piece in pieces) / dense
        rows.append({"name": f"int{bits}", "kept": kept, "error": rounded_error(pieces, bits)})
    return rows


def relative_error(pieces: Sequence[Piece], sizes: Mapping[str, int]) -> float:
    """The error of all pieces together at their sizes, in the metric, relative to all that they do."""
    whole = sum(piece.energy for piece in pieces)
    lost = sum(piece.error(sizes[piece.label]) ** 2 * piece.energy for piece in pieces)
    return (lost / whole) ** 0.5 if whole else 0.0


def advice(rows: Sequence[Row]) -> list[str]:
    """Where plain codes win, and where they do not, in a sentence each.

    Example:
        >>> rows = [{"name": "this plan", "kept": 0.6, "error": 0.2}, {"name": "int8", "kept": 0.53, "error": 0.004}]
        >>> advice(rows)
        ['plain int8 of these matrices keeps 53 % of their bytes, predicted error 0.004 (this plan: 60 %, 0.2): where \
bytes are all that counts, it wins']
    """
    if not rows:
        return []
    plan, *codes = rows
    return [_sentence(each, plan) for each in codes]


def _sentence(codes: Row, plan: Row) -> str:
    fewer, better = codes["kept"] <= plan["kept"], codes["error"] < plan["error"]
    verdict = {
        (True, True): "where bytes are all that counts, it wins",
        (True, False): "fewer bytes, and a larger error",
        (False, True): "a smaller error, for more bytes",
        (False, False): "this plan wins in both",
    }[fewer, better]
    return (
        f"plain {codes['name']} of these matrices keeps {codes['kept']:.0%} of their bytes, predicted error "
        f"{codes['error']:.2g} (this plan: {plan['kept']:.0%}, {plan['error']:.2g}): {verdict}"
    ).replace("%", " %")
