"""The page is one file that loads nothing, explains every column, and cannot be broken by a name."""

import copy
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import eckart
from eckart.nn import matrices
from eckart.nn.files import write_adapter
from eckart.report import html
from eckart.report.columns import COLUMNS
from eckart.spectra import Profile
from families import families


class Page(HTMLParser):
    """The elements of a page, the embedded data, and the visible words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        found = re.search(r'<script type="application/json" id="profile-data">(.*?)</script>', text, re.DOTALL)
        assert found
        self.data: dict[str, Any] = json.loads(found.group(1))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(profile: Profile, folder: Path, **options: Any) -> tuple[str, Page]:
    text = html(profile, folder / "report.html", **options).read_text(encoding="utf-8")
    return text, Page(text)


def test_the_page_names_no_address_and_loads_nothing(profile: Profile, tmp_path: Path) -> None:
    text, page = read(profile, tmp_path)
    assert not re.search(r"https?://|//[a-z0-9-]+\.[a-z]|@import|url\(", text)
    assert not [
        tag for tag, _ in page.elements if tag in ("img", "iframe", "object", "embed", "audio", "video", "base")
    ]
    assert all(a.get("href", "").startswith(("#", "data:")) for tag, a in page.elements if tag in ("a", "link"))
    assert all("src" not in attributes for _, attributes in page.elements)
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_every_column_of_a_profile_has_words(profile: Profile, fast_profile: Profile) -> None:
    for row in profile.rows() + fast_profile.rows():
        for key in row:
            assert COLUMNS[key].words
            assert COLUMNS[key].formula
            assert COLUMNS[key].reading


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_column_of_every_source_of_a_tied_model_has_words(family: str, tmp_path: Path) -> None:
    model, batches = families()[family]()
    base = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters())
    model(**batches[0]).loss.backward()
    optimizer.step()
    measured = eckart.measure(
        model,
        of=("weights", "updates", "gradients", "activations", "optimizer"),
        base=base,
        batches=batches,
        optimizer=optimizer,
    )
    adapted = eckart.measure(base, adapter=adapter_of(base, tmp_path / "adapter"), of="updates")
    keys = {key for row in measured.rows() + adapted.rows() for key in row}
    assert keys >= {"tied", "state", "adapter_rank", "shared_with", "intruders"}
    assert keys <= set(COLUMNS)
    html(measured, tmp_path / "measured.html")
    html(adapted, tmp_path / "adapted.html")


def adapter_of(model: torch.nn.Module, folder: Path) -> Path:
    """A LoRA adapter of rank 2 on the first matrix inside the layers."""
    matrix = next(m for m in matrices(model) if m.kind in ("linear", "conv1d") and "0" in m.name.split("."))
    m, n = matrix.shape
    write_adapter(
        folder,
        {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "fan_in_fan_out": matrix.kind == "conv1d"},
        {
            f"base_model.model.{matrix.name}.lora_A.weight": torch.ones(2, n).triu(),
            f"base_model.model.{matrix.name}.lora_B.weight": torch.ones(m, 2).tril(),
        },
    )
    return folder


def test_the_shown_glossary_is_that_of_the_shown_columns(profile: Profile, tmp_path: Path) -> None:
    _, page = read(profile, tmp_path)
    shown = {a["id"] for _, a in page.elements if (a.get("id") or "").startswith("word-")}
    keys = {key for row in profile.rows() for key in row} - {"of"} | {"suggested_rank"}
    assert shown == {f"word-{key}" for key in keys}


def test_every_link_inside_the_page_leads_somewhere(profile: Profile, tmp_path: Path) -> None:
    _, page = read(profile, tmp_path)
    ids = {a.get("id") for _, a in page.elements}
    assert {a["href"][1:] for tag, a in page.elements if tag == "a" and a["href"]} <= ids


def test_the_embedded_rows_are_the_profile_rounded_to_five_digits(profile: Profile, tmp_path: Path) -> None:
    _, page = read(profile, tmp_path)
    section = page.data["sections"][0]
    column = section["columns"].index("effective_rank")
    assert [row[column] for row in section["rows"]] == pytest.approx(
        [row["effective_rank"] for row in profile.rows("weights")], rel=5e-5
    )
    assert section["spectra"][0]["values"] == pytest.approx(profile.entries[0].values.tolist(), rel=5e-5)


def test_each_budget_offers_the_ranks_that_the_profile_suggests(profile: Profile, tmp_path: Path) -> None:
    _, page = read(profile, tmp_path, budgets=(0.7, 0.3))
    assert page.data["budgets"] == [{"budget": b, "ranks": profile.suggest_ranks(b)} for b in (0.7, 0.3)]


def test_a_fast_profile_shows_ranges_and_says_what_it_cannot_know(fast_profile: Profile, tmp_path: Path) -> None:
    text, page = read(fast_profile, tmp_path)
    section = page.data["sections"][0]
    low, high = section["rows"][0][section["columns"].index("effective_rank")]
    assert low < high
    assert section["rows"][0][section["columns"].index("alpha")] is None
    assert "fast mode computes" in text


def test_hostile_names_stay_words(hostile_profile: Profile, tmp_path: Path) -> None:
    text, page = read(hostile_profile, tmp_path)
    assert "<img" not in text
    assert page.data["sections"][0]["rows"][0][0] == hostile_profile.entries[0].name
    assert [tag for tag, _ in page.elements].count("script") == 2


def test_no_number_of_the_page_is_nan(hostile_profile: Profile, tmp_path: Path) -> None:
    text, _ = read(hostile_profile, tmp_path)
    data = text.split('id="profile-data">')[1].split("</script>")[0]
    assert not re.search(r"\bNaN\b|Infinity", data)


def test_the_title_is_the_last_part_of_the_source_unless_it_is_given(profile: Profile, tmp_path: Path) -> None:
    assert "<title>tiny-model · eckart</title>" in read(profile, tmp_path)[0]
    assert "<title>Mine · eckart</title>" in read(profile, tmp_path, title="Mine", force=True)[0]


def test_an_existing_file_is_kept_without_force(profile: Profile, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match=r"report\.html"):
        html(profile, path)
    assert path.read_text() == "mine"
    assert html(profile, path, force=True) == path
    assert path.read_text(encoding="utf-8") != "mine"


def test_a_failed_page_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no matrices"):
        html(Profile([], "full", "empty", {}), tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_nothing_behind(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(self: Path, data: str, **options: Any) -> int:
        with self.open("w", encoding="utf-8") as file:
            file.write(data[: len(data) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="no space left"):
        html(profile, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_importing_report_loads_no_heavy_library() -> None:
    code = "import sys, eckart.report; print(sorted({'matplotlib', 'pandas', 'jinja2', 'rich'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
