"""What the page's scripts read: a profile as plain lists, small enough to be embedded in the page.

Numbers are rounded to 5 significant digits; spectra of more than 512 values are thinned for drawing, both ends kept.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .column import Column
from .values import is_interval

if TYPE_CHECKING:
    from eckart.spectra import Entry, Profile

POINTS = 512
ORDER = ("weights", "updates", "gradients", "activations", "optimizer")
TITLES = {
    "weights": ("Weights", "The model's own matrices: what could be compressed, and what a spectral start would use."),
    "updates": ("Updates", "What training changed, ΔW = W − W₀: what rank an adapter would need."),
    "gradients": ("Gradients", "The gradient of the loss over the given text: what rank training's steps have."),
    "activations": (
        "Activations",
        "The inputs of each matrix over the given text, centred (σ = √λ of their covariance).",
    ),
    "optimizer": ("Optimizer state", "The optimizer's own matrices: what rank its memory could have."),
}


def sections(profile: "Profile") -> list[dict[str, Any]]:
    """One section for each measurement that the profile holds: its columns, rows, map and spectra.

    Args:
        profile: what `eckart.measure` returned.

    Returns:
        Dicts of plain lists: `of`, `title`, `words`, `columns` (keys), `rows` (values in the columns' order),
        `map` (see `layout`) and `spectra` (one for each row).
    """
    entries = {(entry.of, entry.name): entry for entry in profile.entries}
    found = []
    for of in ORDER:
        rows = [row for row in profile.rows() if row["of"] == of]
        if not rows:
            continue
        title, words = TITLES[of]
        found.append(
            {"of": of, "title": title, "words": words}
            | tabular(rows, [key for key in dict.fromkeys(key for row in rows for key in row) if key != "of"])
            | {"map": layout(rows), "spectra": [spectrum(entries[of, row["name"]]) for row in rows]}
        )
    return found


def tabular(rows: Sequence[dict[str, Any]], keys: list[str]) -> dict[str, Any]:
    """Rows as the page's table takes them: `columns`, and `rows` of values in their order."""
    return {"columns": keys, "rows": [[plain(row.get(key)) for key in keys] for row in rows]}


def layout(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Where each matrix stands in the map: a line for each layer, a column for each kind.

    Args:
        rows: rows of `Profile.rows()` of one measurement.

    Returns:
        `kinds`, a list of (group, label), and `lines`, each with a `label` and either `cells` (the index of the row for
        each kind, None where there is none) or `wide` (the index of a matrix outside the layers).

    Example:
        >>> embedding = {"name": "embed", "layer": None, "kind": "embed"}
        >>> layout([embedding, {"name": "h.0.mlp.up", "layer": 0, "kind": "mlp.up"}])
        {'kinds': [('mlp', 'up')], 'lines': [{'label': 'embed', 'wide': 0}, {'label': '0', 'cells': [1]}]}
    """
    kinds = list(dict.fromkeys(row["kind"] for row in rows if row["layer"] is not None))
    groups = list(dict.fromkeys(kind.rpartition(".")[0] for kind in kinds))
    kinds.sort(key=lambda kind: groups.index(kind.rpartition(".")[0]))
    # The stem is the name up to the layer's number: "encoder.block.3" and "decoder.block.3" are two lines.
    stems = [row["name"].removesuffix(row["kind"]).rstrip(".") for row in rows]
    blocks = {stem.rpartition(".")[0] for stem, row in zip(stems, rows, strict=True) if row["layer"] is not None}
    lines: dict[str, dict[str, Any]] = {}
    for i, (row, stem) in enumerate(zip(rows, stems, strict=True)):
        if row["layer"] is None:
            lines[f"wide {i}"] = {"label": row["name"], "wide": i}
            continue
        label = str(row["layer"]) if len(blocks) == 1 else stem
        line = lines.setdefault(f"line {stem}", {"label": label, "cells": [None] * len(kinds)})
        line["cells"][kinds.index(row["kind"])] = i
    return {
        "kinds": [(kind.rpartition(".")[0], kind.rpartition(".")[2]) for kind in kinds],
        "lines": list(lines.values()),
    }


def spectrum(entry: "Entry") -> dict[str, Any]:
    """The points of one spectrum that are drawn.

    Returns:
        `at`, their indices from 1 (absent where all are drawn), `values`, `count` = min(m, n), and `known`, how many
        singular values the profile has.
    """
    at, values = thinned(len(entry.values), POINTS), entry.values.tolist()
    drawn: dict[str, Any] = {
        "values": [plain(values[i]) for i in at],
        "count": min(entry.shape),
        "known": len(entry.values),
    }
    return drawn if len(at) == len(entry.values) else drawn | {"at": [i + 1 for i in at]}


def thinned(count: int, points: int) -> list[int]:
    """At most `points` of the indices 0 … count − 1: both ends, the first ones densely, then evenly.

    Half of them are spread evenly in log index and half in index, so that neither axis shows gaps.

    Example:
        >>> at = thinned(50_000, 512)
        >>> len(at) <= 512, at[:3], at[-1]
        (True, [0, 1, 2], 49999)
    """
    if count <= points:
        return list(range(count))
    half = points // 2
    even = {round(i * (count - 1) / (half - 1)) for i in range(half)}
    geometric = {round(count ** (i / half)) - 1 for i in range(half)}
    return sorted(even | geometric)


def plain(value: Any) -> Any:
    """A value as JSON holds it: 5 significant digits, null for what is not finite, a list for an interval.

    Example:
        >>> [plain(v) for v in (0.1234567, float("nan"), (1.0, 2.5), ("a", "b"), 7)]
        [0.12346, None, [1.0, 2.5], 'a, b', 7]
    """
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if is_interval(value):
        return [plain(end) for end in value]
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return value


def glossary(keys: Iterable[str], known: Mapping[str, Column]) -> dict[str, Column]:
    """The words for the columns that a page shows, in their order; KeyError for a column that has none."""
    shown = dict.fromkeys(keys)
    if missing := [key for key in shown if key not in known]:
        raise KeyError(f"no words for the columns {missing}; add a Column for each to the columns of eckart.report")
    return {key: known[key] for key in shown}


def embedded(value: Any) -> str:
    """JSON that can stand inside a script element, whatever the names in it: no `<`, `>`, `&` or line separators.

    Example:
        >>> embedded({"name": "</script>"})
        '{"name":"\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
