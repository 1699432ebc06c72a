"""One self-contained HTML page of a compression: what it took, what it lost, and what became of each matrix."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eckart.nn import locate

from .chart import Line, chart
from .compression_columns import COMPRESSION_COLUMNS
from .compression_totals import totals
from .page import last_part
from .payload import glossary, layout, tabular
from .sizes import in_bytes, rounded
from .templates import described, write_page

SCRIPTS = ("base.js", "map.js", "table.js", "compression.js")  # in this order, inside one function
SHOWN = ("notes", "perplexities", "speeds", "left_out")  # of a summary, by the template itself
Row = dict[str, Any]


def compression(
    rows: Sequence[Row],
    path: str | Path,
    *,
    summary: Mapping[str, Any] | None = None,
    curve: Sequence[Mapping[str, Any]] = (),
    title: str | None = None,
    force: bool = False,
) -> Path:
    """Write a plan, or a compressed model, as one HTML file: totals, quality, speed, trade-off, every matrix.

    Args:
        rows: what `rows()` of a plan or of a compressed model gives.
        path: where to write; missing parent folders are made.
        summary: what is known of the whole, each key optional: `model`, `method`, `keep`, `kept_of_model`, `seconds`;
            `parameters`, `bytes`, and these with `dense_` before them; `perplexities`, dicts of text, tokens, context,
            dense, compressed, and domain where it is known; `speeds`, dicts of phase, dense, compressed and ratio, in
            tokens per second; both with int8 where that was measured; `calibration`, dicts of text and tokens;
            `recovery`, `notes`, `left_out`.
        curve: one dict for each budget: `kept`, `error` (predicted), and `perplexities`, text → value, where measured.
        title: what the page is called; None takes the model's name.
        force: replace a file that is already there.

    Returns:
        The path of the page. `page.html#select=NAME` opens it at one matrix.

    Raises:
        ValueError: there are no rows.
        FileExistsError: `path` exists and `force` is false.

    Example:
        >>> import tempfile, torch, eckart
        >>> from eckart.report import compression
        >>> plan = eckart.compress(torch.nn.Sequential(torch.nn.Linear(8, 8)), keep=0.5, method="svd", dry_run=True)
        >>> page = compression(plan.rows(), Path(tempfile.mkdtemp()) / "page.html", title="One layer")
        >>> "<title>One layer" in page.read_text(encoding="utf-8")
        True
    """
    if not rows:
        raise ValueError("rows: empty, so there is nothing to show; give plan.rows()")
    known = dict.fromkeys(SHOWN) | dict(summary or {})
    keys = [key for key in COMPRESSION_COLUMNS if any(key in row for row in rows)]
    words = glossary(keys, COMPRESSION_COLUMNS)
    section = {"of": "compression", "title": "Matrices", "map": _places(rows), "spectra": []} | tabular(rows, keys)
    data = {"sections": [section], "columns": described(words), "budgets": [], "ranked": ""}
    name = str(known.get("model") or "compressed model")
    return write_page(
        "compression.html",
        path,
        data,
        SCRIPTS,
        force=force,
        kicker="compression",
        title=title or last_part(name),
        totals=_totals(rows, known),
        known=known,
        charts=charts(curve),
        curve=curve,
        codes=any(each.get("int8") is not None for key in ("perplexities", "speeds") for each in known[key] or ()),
        texts=list(dict.fromkeys(text for point in curve for text in point.get("perplexities") or {})),
        glossary=words,
        facts=_facts(known),
    )


def charts(curve: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The trade-off over budgets: the predicted error, and the perplexity of each text where it was measured."""
    errors = [(point["kept"], point["error"]) for point in curve if point.get("error") is not None]
    texts: dict[str, list[tuple[float, float]]] = {}
    for point in curve:
        for text, value in (point.get("perplexities") or {}).items():
            if value is not None:
                texts.setdefault(last_part(str(text)), []).append((point["kept"], value))
    figures = {
        "relative error": [Line("predicted error", tuple(errors))] if errors else [],
        "perplexity": [Line(text, tuple(points)) for text, points in texts.items()],
    }
    return [chart(lines, x="kept of the selected matrices", y=y) for y, lines in figures.items() if lines]


def _places(rows: Sequence[Row]) -> dict[str, Any]:
    """The map's cells: of what was decomposed together every matrix has one, and all show the same row."""
    places, owners = [], []
    for i, row in enumerate(rows):
        for name in row.get("matrices") or [row["name"]]:
            layer, kind = locate(name)
            places.append({"name": name, "layer": layer, "kind": kind})
            owners.append(i)
    found = layout(places)
    for line in found["lines"]:
        if "wide" in line:
            line["wide"] = owners[line["wide"]]
        else:
            line["cells"] = [None if cell is None else owners[cell] for cell in line["cells"]]
    return found


def _totals(rows: Sequence[Row], known: Mapping[str, Any]) -> list[tuple[str, str]]:
    whole = totals(rows)
    told = [(f"{whole.kept:.1%}", "of the selected matrices' bytes kept")]
    if known.get("kept_of_model") is not None:
        told.append((f"{known['kept_of_model']:.1%}", "of the whole model's bytes"))
    for key, written, label in (("bytes", in_bytes, "size"), ("parameters", rounded, "parameters")):
        if known.get(key) is not None:
            before = known.get(f"dense_{key}")
            told.append((written(known[key]), label + (f", dense {written(before)}" if before else "")))
    return [*told, (f"{whole.compressed} of {whole.matrices}", "matrices compressed; the others stay dense")]


def _facts(known: Mapping[str, Any]) -> dict[str, str]:
    """What was done, in words."""
    facts = {key: str(known[key]) for key in ("model", "method", "keep", "recovery") if known.get(key) is not None}
    texts = [f"{each['text']}: {each['tokens']:,} tokens" for each in known.get("calibration") or ()]
    if texts:
        facts["calibration"] = "; ".join(texts)
    if known.get("seconds") is not None:
        facts["time"] = f"{known['seconds']:.0f} s"
    return facts
