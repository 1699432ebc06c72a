"""A plan, or a compressed model, in the terminal: a line for each kind of matrix or for every row, then the whole."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from eckart.nn import locate

from .compression_totals import totals
from .sizes import in_bytes, rounded
from .table import WIDE, cell

Row = dict[str, Any]
HEADS = {"size": "rank", "kept": "kept", "predicted_error": "predicted", "measured_error": "measured"}


def render_compression(
    rows: Sequence[Row],
    *,
    summary: Mapping[str, Any] | None = None,
    curve: Sequence[Mapping[str, Any]] = (),
    every: bool = False,
    console: Console | None = None,
) -> None:
    """Print what became of a model's matrices, and what that takes and loses.

    Args:
        rows: what `rows()` of a plan or of a compressed model gives.
        summary: what is known of the whole; see `compression`.
        curve: one dict for each budget; see `compression`.
        every: a line for every row; else a line for every kind of matrix, with the median over the layers and, for the
            rank, its range.
        console: where to print; None prints to stdout.
    """
    console, known = console or Console(), dict(summary or {})
    console.print(_table(rows, every, wide=console.width >= WIDE))
    if curve:
        console.print(_trade_off(curve))
    for line in sentences(rows, known):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def sentences(rows: Sequence[Row], known: Mapping[str, Any]) -> list[str]:
    """What was kept, the quality, the speed and the notes, each in a sentence.

    Example:
        >>> rows = [{"name": "0", "form": "factors", "bytes": 96, "dense_bytes": 128}]
        >>> speed = {"phase": "prefill", "dense": 90, "compressed": 99, "ratio": 1.1}
        >>> for sentence in sentences(rows, {"method": "svd", "speeds": [speed]}):
        ...     print(sentence)
        svd: 1 of 1 matrices compressed, 75.0 % of their bytes kept.
        Prefill: 99 tokens per second, dense 90, 1.10 ×.
    """
    whole = totals(rows)
    count = f"{whole.compressed} of {whole.matrices} matrices compressed"
    first = f"{known.get('method', 'plan')}: {count}, {100 * whole.kept:.1f} % of their bytes kept"
    if known.get("kept_of_model") is not None:
        first += f", {100 * known['kept_of_model']:.1f} % of the model's"
    found = [first + "."]
    if known.get("bytes") and known.get("dense_bytes"):
        counts = "" if not known.get("parameters") else f", {rounded(known['parameters'])} parameters"
        before = "" if not known.get("dense_parameters") else f" of {rounded(known['dense_parameters'])}"
        found.append(f"{in_bytes(known['bytes'])} of {in_bytes(known['dense_bytes'])}{counts}{before}.")
    found += [_quality(each) for each in known.get("perplexities") or ()]
    found += [_speed(each) for each in known.get("speeds") or ()]
    if known.get("recovery"):
        found.append(f"{str(known['recovery']).rstrip('.')}.")
    return found + [f"Note: {str(note).rstrip('.')}." for note in known.get("notes") or ()]


def _speed(each: Mapping[str, Any]) -> str:
    pair = f"{each['compressed']:.0f} tokens per second, dense {each['dense']:.0f}"
    if each.get("int8") is not None:
        pair += f", int8 {each['int8']:.0f}"
    return f"{each['phase'].capitalize()}: {pair}, {each['ratio']:.2f} ×."


def _quality(each: Mapping[str, Any]) -> str:
    over = f"{each['text']}, {each['tokens']:,} tokens"
    values = [f"{each[key]:.2f}" if each.get(key) is not None else "not measured" for key in ("dense", "compressed")]
    codes = "" if each.get("int8") is None else f" (plain int8 {each['int8']:.2f})"
    return f"Perplexity {' → '.join(values)}{codes} on {over}."


def _table(rows: Sequence[Row], every: bool, wide: bool) -> Table:
    """A narrow one shows one error, the measured one where there is one, and does not count what stays dense.

    Errors are predicted in the method's metric, and measured at the outputs of single matrices.
    """
    measured = any(row.get("measured_error") is not None for row in rows)
    hidden = "measured_error" if not measured else None if wide else "predicted_error"
    keys = [key for key in HEADS if key != hidden]
    table = Table(title="what becomes of each matrix; relative errors of what is compressed", title_justify="left")
    table.add_column("matrix", no_wrap=not every, overflow="fold")
    table.add_column("form")
    for head in (*(("dense",) if wide else ()), *(HEADS[key] for key in keys)):
        table.add_column(head, justify="right", no_wrap=True)
    for label, group in _groups(rows, every).items():
        forms = dict.fromkeys(row["form"] for row in group if row["form"] != "dense")
        dense = [str(sum(row["form"] == "dense" for row in group) or "–")] if wide else []
        smaller = [row for row in group if row["form"] != "dense"] or group  # the errors of what stays dense are zero
        cells = (_cell(key, [row.get(key) for row in (smaller if key.endswith("error") else group)]) for key in keys)
        table.add_row(label, ", ".join(forms) or "dense", *dense, *cells)
    return table


def _groups(rows: Sequence[Row], every: bool) -> dict[str, list[Row]]:
    """The rows of each line: of one kind and one full size."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for i, row in enumerate(rows):
        kinds = dict.fromkeys(locate(name)[1] for name in row.get("matrices") or [row["name"]])
        key = (row["name"], i) if every else (" + ".join(kinds), row["full"])
        groups.setdefault(key, []).append(row)
    labels = [name if len(group) == 1 else f"{name}  × {len(group)}" for (name, _), group in groups.items()]
    same = {label for label, count in Counter(labels).items() if count > 1}  # of one kind, but of several sizes
    named = [f"{label} ({full})" if label in same else label for label, (_, full) in zip(labels, groups, strict=True)]
    return dict(zip(named, groups.values(), strict=True))


def _cell(key: str, values: list[Any]) -> str:
    return cell(values, spread=key == "size", digits=3 if key.endswith("error") else 2)


def _trade_off(curve: Sequence[Mapping[str, Any]]) -> Table:
    texts = list(dict.fromkeys(text for point in curve for text in point.get("perplexities") or {}))
    table = Table(title="what each budget would lose", title_justify="left")
    for head in ("kept", "predicted error", *(f"perplexity, {text}" for text in texts)):
        table.add_column(head, justify="right")
    for point in curve:
        measured = [(point.get("perplexities") or {}).get(text) for text in texts]
        values = ["–" if value is None else f"{value:.2f}" for value in measured]
        table.add_row(f"{point['kept']:.3f}", cell([point.get("error")], digits=4), *values)
    return table
