"""The page and the table of a compression say what the rows say, load nothing, and cannot be broken by a name."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from eckart.report import compression, render_compression
from eckart.report.chart import STYLES, Line, chart
from eckart.report.compression_columns import COMPRESSION_COLUMNS
from eckart.report.compression_table import sentences

HOSTILE = "</script><img src=x onerror=alert(1)>&\"'\u2028"
SUMMARY: dict[str, Any] = {
    "model": "somewhere/tiny", "method": "auto", "keep": 0.8, "kept_of_model": 0.9, "parameters": 80_000,
    "dense_parameters": 100_000, "bytes": 320_000, "dense_bytes": 400_000, "notes": ["few tokens"],
    "perplexities": [
        {"text": "pydoc", "tokens": 8000, "context": 1024, "dense": 13.7, "compressed": 16.25, "int8": 13.72}
    ],
    "speeds": [{"phase": "prefill", "dense": 100.0, "compressed": 130.0, "ratio": 1.3, "int8": 61.0}],
    "calibration": [{"text": "pydoc", "weight": 1.0, "tokens": 32768}], "left_out": {"lm_head": "a head"},
}  # fmt: skip
CURVE = [{"keep": 0.9, "kept": 0.9, "error": 0.05, "perplexities": {"pydoc": 15.0}},
         {"keep": 0.6, "kept": 0.6, "error": 0.2, "perplexities": {}}]  # fmt: skip


def row(name: str, size: int, full: int = 24, **more: Any) -> dict[str, Any]:
    """A row as plans give it."""
    return {
        "name": name, "matrices": name.split(" + "), "form": "dense" if size == full else "pivoted", "size": size,
        "full": full, "bytes": 100 * size, "dense_bytes": 100 * full, "kept": size / full,
        "predicted_error": 1 - size / full, "measured_error": None, "stable_rank": 3.0,
        "effective_rank": 9.5, "tokens": 900,
    } | more  # fmt: skip


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Two layers of two matrices, and two that were decomposed together."""
    found = [row(f"model.layers.{i}.{kind}", 6 * i + 12) for i in range(2) for kind in ("mlp.up", "mlp.down")]
    found[3] |= {"size": 24, "bytes": 2400, "kept": 1.0, "form": "dense", "predicted_error": 0.0, "measured_error": 0.0}
    return [*found, row("model.layers.0.k + model.layers.1.k", 4)]


def written(rows: list[dict[str, Any]], folder: Path, **options: Any) -> tuple[str, dict[str, Any]]:
    text = compression(rows, folder / "page.html", **options).read_text(encoding="utf-8")
    data = re.search(r'<script type="application/json" id="profile-data">(.*?)</script>', text, re.DOTALL)
    assert data
    return text, json.loads(data.group(1))


def printed(rows: list[dict[str, Any]], width: int = 160, **options: Any) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    render_compression(rows, console=console, **options)
    return console.export_text()


def test_the_page_names_no_address_and_loads_nothing(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    text, _ = written(rows, tmp_path, summary=SUMMARY, curve=CURVE)
    assert not re.search(r"https?://|@import|url\(|<img|<iframe|<link [^>]*href=\"[^d]| src=", text)
    assert "default-src 'none'" in text


def test_the_table_holds_every_row_and_the_share_that_is_kept(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    (section,) = written(rows, tmp_path)[1]["sections"]
    column = section["columns"].index
    assert [each[column("name")] for each in section["rows"]] == [each["name"] for each in rows]
    assert [each[column("kept")] for each in section["rows"]] == [0.5, 0.5, 0.75, 1.0, pytest.approx(1 / 6, rel=1e-4)]


def test_matrices_that_were_decomposed_together_have_a_cell_each_of_one_row(
    rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    found = written(rows, tmp_path)[1]["sections"][0]["map"]
    kinds = [kind for _, kind in found["kinds"]]
    assert [line["cells"][kinds.index("k")] for line in found["lines"]] == [4, 4]
    assert [line["cells"][kinds.index("up")] for line in found["lines"]] == [0, 2]


def test_quality_speed_notes_and_what_was_left_out_are_on_the_page(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    text, _ = written(rows, tmp_path, summary=SUMMARY, curve=CURVE)
    for words in ("13.7", "16.25", "1.3", "few tokens", "a head", "32,768 tokens", "<title>tiny", "320 kB", "80 k"):
        assert words in text, words
    assert text.count('<svg class="chart"') == 2


def test_a_plan_alone_makes_a_page_too(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    text, _ = written([{k: v for k, v in each.items() if k != "measured_error"} for each in rows], tmp_path, title="P")
    assert "word-measured_error" not in text
    assert "Trade-off" not in text


def test_hostile_names_stay_words(tmp_path: Path) -> None:
    summary = {"model": HOSTILE, "notes": [HOSTILE], "left_out": {HOSTILE: HOSTILE}}
    curve = [{"kept": 0.5, "error": 0.1, "perplexities": {HOSTILE: 9.0}}]
    text, data = written([row(HOSTILE, 3, matrices=[HOSTILE])], tmp_path, summary=summary, curve=curve)
    assert "<img" not in text
    assert text.count("<script") == 2
    assert data["sections"][0]["rows"][0][0] == HOSTILE


def test_nothing_is_written_of_no_rows_nor_over_another_page(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"plan\.rows\(\)"):
        compression([], tmp_path / "page.html")
    assert not list(tmp_path.iterdir())
    (tmp_path / "page.html").write_text("mine")
    with pytest.raises(FileExistsError, match="page"):
        compression(rows, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == "mine"


def test_every_column_says_what_it_is_and_labels_differ() -> None:
    labels = [column.label for column in COMPRESSION_COLUMNS.values()]
    assert len(set(labels)) == len(labels)
    assert all(c.label and c.formula and c.words and c.reading for c in COMPRESSION_COLUMNS.values())


def test_a_chart_puts_each_point_where_its_values_are() -> None:
    drawn = chart([Line("a", ((0.5, 0.0), (0.75, 1.0), (1.0, 2.0)))], x="kept", y="error")
    dots = [
        tuple(map(float, found)) for found in re.findall(r'<circle class="dot-0" cx="([\d.]+)" cy="([\d.]+)"', drawn)
    ]
    assert dots[1] == pytest.approx(((dots[0][0] + dots[2][0]) / 2, (dots[0][1] + dots[2][1]) / 2), abs=0.1)
    assert dots[0][0] < dots[2][0]
    assert dots[0][1] > dots[2][1]


def test_what_spans_more_than_a_factor_of_ten_is_on_a_logarithmic_axis() -> None:
    drawn = chart([Line("a", ((1, 1.0), (2, 10.0), (3, 100.0)))], x="x", y="y")
    heights = [float(each) for each in re.findall(r'cy="([\d.]+)"', drawn)]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)


def test_one_point_and_more_lines_than_styles_are_drawn() -> None:
    drawn = chart([Line(str(i), ((0.8, 3.0),)) for i in range(STYLES + 1)], x="x", y="y")
    assert drawn.count("<circle") == STYLES + 1
    assert "nan" not in drawn


def test_the_terminal_has_a_line_for_each_kind_with_the_range_of_ranks(rows: list[dict[str, Any]]) -> None:
    text = printed(rows)
    assert re.search(r"mlp\.down  × 2 +│ pivoted +│ +1 │ +18  \[12 – 24\]", text)
    assert re.search(r"mlp\.up  × 2 +│ pivoted +│ +– │ +15  \[12 – 18\]", text)
    assert "model.layers.0.k + model.layers.1.k" not in text
    assert "model.layers.0.k + model.layers.1.k" in printed(rows, every=True)


def test_nothing_is_cut_where_the_terminal_is_narrow(rows: list[dict[str, Any]]) -> None:
    text = printed([row(f"model.layers.{i}.self_attn.q_proj", 100 + i, 576) for i in range(30)], 80, curve=CURVE)
    assert "…" not in text
    assert "self_attn.q_proj  × 30" in text


def test_the_whole_is_told_in_sentences(rows: list[dict[str, Any]]) -> None:
    told = sentences(rows, SUMMARY)
    assert told[0] == "auto: 5 of 6 matrices compressed, 58.3 % of their bytes kept, 90.0 % of the model's."
    assert told[1] == "320 kB of 400 kB, 80 k parameters of 100 k."
    assert told[2] == "Perplexity 13.70 → 16.25 (plain int8 13.72) on pydoc, 8,000 tokens."
    assert told[3:] == ["Prefill: 130 tokens per second, dense 100, int8 61, 1.30 ×.", "Note: few tokens."]


def test_what_stays_dense_does_not_hide_that_an_error_was_not_measured() -> None:
    rows = [row(f"model.layers.{i}.mlp.up + model.layers.{i}.mlp.down", 12) for i in range(3)]
    rows[0] |= {"size": 24, "form": "dense", "measured_error": 0.0}
    rows += [row(f"model.layers.{i}.q", 12, measured_error=0.25) for i in range(3)]
    up, q = (line for line in printed(rows).splitlines() if "×" in line)
    assert up.rstrip(" │").endswith("–")
    assert q.rstrip(" │").endswith("0.250")
