"""A plan, or what became of it, as rows of plain data and as text.

Paper: none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from eckart.compression.allocations.rules import total_bytes
from eckart.compression.pieces.piece import Piece
from eckart.compression.pieces.rounding import ROUNDING, rounded_error
from eckart.linalg import effective_rank, stable_rank

Row = dict[str, Any]


def plan_row(piece: Piece, size: int, tokens: Mapping[str, int]) -> Row:
    """What a plan says of a piece.

    Returns:
        name, matrices, form ("dense" at full size), size and full, bytes, dense_bytes and kept, predicted_error
        (relative, in the metric, on the calibration), int8_error and int4_error (what plain codes would lose in the
        same metric; None where its error is not of outputs), stable_rank and effective_rank in the metric, tokens.
    """
    spectrum, taken = piece.spectrum, total_bytes([piece], {piece.label: size})
    known = len(spectrum) > 0 and bool(spectrum[0] > 0)
    return {
        "name": piece.label,
        "matrices": list(piece.names),
        "form": "dense" if size == piece.full else piece.form,
        "size": size,
        "full": piece.full,
        "bytes": taken,
        "dense_bytes": piece.dense_bytes,
        "kept": taken / piece.dense_bytes,
        "predicted_error": piece.error(size),
        "int8_error": rounded_error([piece], 8) if ROUNDING in piece.learned else None,
        "int4_error": rounded_error([piece], 4) if ROUNDING in piece.learned else None,
        "stable_rank": float(stable_rank(spectrum)) if known else 0.0,
        "effective_rank": float(effective_rank(spectrum)) if known else 0.0,
        "tokens": min((tokens.get(name, 0) for name in piece.names), default=0),
    }


def table(title: str, rows: Sequence[Row], notes: Sequence[str], *, longest: int = 40) -> str:
    """Rows as lines of text under a title, the notes first; where there are more than `longest`, it says so."""
    lines = [title, *(f"note: {note}" for note in notes)]
    width = max((len(row["name"]) for row in rows[:longest]), default=4)
    measured = any("measured_error" in row for row in rows)
    head = f"{'matrix':{width}}  {'form':>10} {'size':>11} {'kept':>6} {'predicted':>9}"
    lines.append(head + (f" {'measured':>9}" if measured else ""))
    for row in rows[:longest]:
        line = (
            f"{row['name']:{width}}  {row['form']:>10} {row['size']:>5}/{row['full']:<5} "
            f"{row['kept']:>6.2f} {row['predicted_error']:>9.4f}"
        )
        error = row.get("measured_error")
        lines.append(line + ("" if not measured else f" {'-' if error is None else format(error, '.4f'):>9}"))
    if len(rows) > longest:
        lines.append(f"… and {len(rows) - longest} more: rows() has them all")
    return "\n".join(lines)
