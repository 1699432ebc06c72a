"""The gallery is one file that loads nothing, and its figures are the same bytes for the same numbers."""

import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib import pyplot

from eckart.claims import Check, Line, Outcome, Panel, Result, draw, run_many, write_gallery
from eckart.claims.figures import describe
from eckart.claims.looks import COLOURS, INK
from toy_claims import HOSTILE, TOYS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
VOID = {"meta", "link", "br", "img", "hr", "input", "col", "path", "use", "rect"}


class Page(HTMLParser):
    """The elements of a page in order, and whether every one that is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def ids(self) -> list[str]:
        return [attributes["id"] or "" for _, attributes in self.elements if "id" in attributes]


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return list(run_many(TOYS))


@pytest.fixture(scope="module")
def page(outcomes: list[Outcome], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gallery(outcomes, tmp_path_factory.mktemp("gallery") / "gallery.html")


def test_the_page_loads_nothing_runs_nothing_and_leads_only_to_arxiv(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = Page(text)
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"script", "img", "iframe", "object", "embed", "base", "image", "foreignobject"}
    assert all("src" not in attributes for _, attributes in found.elements)
    assert not re.search(r"@import|url\((?!#)", text)
    hrefs = [a["href"] or "" for tag, a in found.elements if "href" in a]
    assert all(href.startswith(("#", "data:", "https://arxiv.org/abs/")) for href in hrefs)
    assert set(re.findall(r"https?://[^\"<\s]*", text)) == {
        "https://arxiv.org/abs/2503.19859", "https://arxiv.org/abs/2306.01154",
    }  # fmt: skip
    policy = next(a["content"] for _, a in found.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "script-src" not in policy


def test_every_id_is_there_once_and_every_inner_link_leads_to_one(page: Path) -> None:
    found = Page(page.read_text(encoding="utf-8"))
    ids = found.ids()
    assert len(ids) == len(set(ids))
    inner = [a["href"] for _, a in found.elements if (a.get("href") or "").startswith("#")]
    assert {href.removeprefix("#") for href in inner if href} <= set(ids)
    assert {"T1", "C1", "D1", "summary"} <= set(ids)
    assert all((a.get("aria-labelledby") or ids[0]) in ids for _, a in found.elements)
    assert found.open == []


def test_hostile_words_stay_words(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert "<img" not in text
    assert text.count("&lt;/section&gt;&lt;img") >= 10


def test_verdicts_are_read_without_colour_and_the_figure_without_sight(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for mark in ("✓ holds", "✗ fails", "! error", "✓ yes", "✗ no"):
        assert mark in text
    assert "there are no digits" in text
    assert "Growth: σ over step t. σ₁: from 0 at 0 to 1.99 at 49. theory (theory): from 0" in text
    svgs = [a for tag, a in Page(text).elements if tag == "svg"]
    assert [a["role"] for a in svgs] == ["img"]
    assert all(a["aria-label"] for a in svgs)


def test_each_claim_shows_its_numbers_and_the_command_that_makes_them(page: Path) -> None:
    text = re.sub(r"\s+", " ", page.read_text(encoding="utf-8"))
    section = text[text.index('id="C1"') :]
    for cell in ("slope", "<td>-0.4</td><td>=</td> <td>-1</td><td>± 0.1</td>", "<td>≤</td>"):
        assert cell in section
    assert "eckart claims run C1 --seed 0 --size small" in section
    assert "Without noise." in text


def test_the_figure_takes_the_pages_colours(page: Path) -> None:
    svg = page.read_text(encoding="utf-8").split("<svg")[1].split("</svg>")[0]
    assert "var(--line-0)" in svg
    assert "currentColor" in svg
    assert not [colour for colour in (*COLOURS, INK) if colour in svg]


def test_no_outcomes_and_a_page_that_exists_are_refused(page: Path, outcomes: list[Outcome]) -> None:
    with pytest.raises(ValueError, match="outcomes: empty"):
        write_gallery([], page)
    with pytest.raises(FileExistsError, match="force"):
        write_gallery(outcomes, page)
    assert write_gallery(outcomes, page, force=True) == page


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_the_same_result_is_drawn_as_the_same_bytes(kind: str, outcomes: list[Outcome], tmp_path: Path) -> None:
    assert outcomes[0].result
    paths = [tmp_path / f"{name}.{kind}" for name in "ab"]
    for path in paths:
        draw(outcomes[0].result, path)
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert b"dc:date" not in first
    assert b"matplotlib.org" not in first
    assert pyplot.get_fignums() == []


def _result(*lines: Line, log: str = "") -> Result:
    return Result([Check("x", 1.0, 1.0)], [Panel("t", "x", "y", lines, log)])  # type: ignore[arg-type]


def test_theory_is_dashed_and_has_the_colour_of_what_it_is_beside() -> None:
    pairs = [Line("a", [0, 1], [0, 1]), Line("b", [0, 1], [1, 2])]
    theory = [Line("a, theory", [0, 1], [0, 1], "dashed"), Line("b, theory", [0, 1], [1, 2], "dashed")]
    [axes] = draw(_result(*pairs, *theory)).axes
    assert [line.get_linestyle() for line in axes.lines] == ["-", "-", "--", "--"]
    assert [line.get_color() for line in axes.lines] == [*COLOURS[:2], *COLOURS[:2]]
    [axes] = draw(_result(*pairs, theory[0])).axes
    assert axes.lines[2].get_color() == INK
    [axes] = draw(_result(*pairs, *theory, *pairs)).axes  # fewer theories: only the one right after a measurement
    assert [line.get_color() for line in axes.lines[1:3]] == [COLOURS[1]] * 2
    assert len({line.get_color() for line in axes.lines}) == 5
    [axes] = draw(_result(pairs[0], theory[0], pairs[1], theory[1])).axes
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "a, theory", "b, theory"]


def test_a_short_logarithmic_axis_and_one_of_whole_numbers_are_marked_plainly() -> None:
    width = Line("weight", [5, 8, 10, 20, 40], [0.2, 0.125, 0.1, 0.05, 0.025])
    figure = draw(_result(width, log="xy"))
    figure.canvas.draw()
    [axes] = figure.axes
    assert {"10", "20"} <= {text.get_text() for text in axes.get_xticklabels(which="both")}
    assert not any("mathdefault" in text.get_text() for text in axes.get_yticklabels(which="both"))
    [axes] = draw(_result(Line("σ", list(range(1, 21)), [0.0] * 20))).axes
    assert all(float(place).is_integer() for place in axes.get_xticks())


@pytest.mark.parametrize("count", [1, 6, 7, 12])
def test_lines_are_told_apart_by_colour_and_neighbours_by_marker(count: int) -> None:
    [axes] = draw(_result(*(Line(str(i), [1, 2], [i, i]) for i in range(count)))).axes
    assert len({line.get_color() for line in axes.lines}) == count
    markers = [line.get_marker() for line in axes.lines]
    assert len(set(markers)) == min(count, 8)


def test_a_panel_of_zeros_gaps_and_no_points_is_drawn_on_logarithmic_axes(tmp_path: Path) -> None:
    lines = [Line("zeros", [0, 1], [0.0, 0.0]), Line("gap", [1, 2], [math.nan, 1.0], "points"), Line("none", [], [])]
    figure = draw(_result(*lines, log="xy"), tmp_path / "a.svg")
    assert (figure.axes[0].get_xscale(), figure.axes[0].get_yscale()) == ("log", "log")
    panel = _result(*lines, log="xy").panels[0]
    assert describe(panel).startswith(
        "t: y (logarithmic) over x (logarithmic). zeros: from 0 at 0 to 0 at 1. gap: from"
    )


def test_a_result_without_panels_has_no_figure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no panels"):
        draw(Result([Check("x", 1.0, 1.0)], []), tmp_path / "a.svg")
    assert not (tmp_path / "a.svg").exists()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")
@pytest.mark.parametrize("size", ["1400,1000", "390,844"])
def test_the_page_opens_in_a_browser_and_is_no_wider_than_its_window(page: Path, size: str, tmp_path: Path) -> None:
    measured = tmp_path / "measured.html"
    text = page.read_text(encoding="utf-8").replace("style-src", "script-src 'unsafe-inline'; style-src")
    act = 'document.body.dataset.widths = innerWidth + " " + document.documentElement.scrollWidth;'
    measured.write_text(f'{text}<script>addEventListener("load", () => {{ {act} }});</script>', encoding="utf-8")
    flags = (
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--enable-logging=stderr", "--virtual-time-budget=3000", f"--window-size={size}",
        f"--user-data-dir={tmp_path / 'browser'}",
    )  # fmt: skip
    command = [str(CHROMIUM), *flags, "--dump-dom", measured.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert not [line for line in result.stderr.splitlines() if ":CONSOLE" in line]
    found = re.search(r'data-widths="(\d+) (\d+)"', result.stdout)
    assert found
    inner, content = map(int, found.groups())
    assert content <= inner
