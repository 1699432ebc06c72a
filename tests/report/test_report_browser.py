"""The page works in a browser: Chromium without a window renders it, and its address opens one matrix."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from eckart.report import html
from eckart.spectra import Profile

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
    "--virtual-time-budget=3000",
)  # fmt: skip
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)"),
]


def shown(page: Path, address: str = "", *, act: str = "", size: str = "1400,1000") -> str:
    """The page as Chromium has it after `act` (JavaScript) ran; any message on its console fails the test."""
    if act:
        acted = page.with_name("acted.html")
        acted.write_text(page.read_text(encoding="utf-8") + f"<script>{act}</script>", encoding="utf-8")
        page = acted
    with_profile = (*FLAGS, f"--user-data-dir={page.parent / 'browser'}", f"--window-size={size}")
    command = [str(CHROMIUM), *with_profile, "--dump-dom", page.as_uri() + address]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert not [line for line in result.stderr.splitlines() if ":CONSOLE" in line]
    return result.stdout


def chosen(dom: str) -> list[str]:
    return re.findall(r'data-selected="([^"]*)"', dom)


@pytest.fixture
def page(profile: Profile, tmp_path: Path) -> Path:
    return html(profile, tmp_path / "report.html")


def test_the_map_has_one_cell_for_each_matrix_and_one_that_tab_reaches(profile: Profile, page: Path) -> None:
    cells = re.findall(r'<td role="gridcell"[^>]*>', shown(page))
    names = [re.search(r'data-name="([^"]*)"', cell).group(1) for cell in cells]  # type: ignore[union-attr]
    assert sorted(names) == sorted(row["name"] for row in profile.rows("weights"))
    assert sum('tabindex="0"' in cell for cell in cells) == 1


def test_the_address_opens_a_matrix_with_its_spectrum(profile: Profile, page: Path) -> None:
    dom = shown(page, "#select=model.layers.2.mlp.up_proj&budget=0.6")
    assert chosen(dom) == ["model.layers.2.mlp.up_proj"]
    row = next(r for r in profile.rows("weights") if r["name"] == "model.layers.2.mlp.up_proj")
    assert f"99 % of energy: {row['energy_rank_99']}" in dom
    assert f"noise edge {row['noise_edge']:.3g}" in dom
    curve = re.search(r'<path class="curve" d="([^"]*)"', dom)
    assert curve
    assert len(re.findall(r"[ML]", curve.group(1))) == 24
    assert '<span class="rank">' in dom


def test_the_address_opens_another_measurement(page: Path) -> None:
    dom = shown(page, "#of=activations&select=model.layers.1.self_attn.q_proj")
    assert dom.count('role="gridcell"') == 3
    assert re.search(r'<button[^>]*data-of="activations"[^>]*aria-selected="true"', dom)
    assert "Shared with" in dom


def test_arrow_keys_move_and_enter_chooses(page: Path) -> None:
    act = """
      const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
      document.querySelector('[data-name="model.layers.0.self_attn.k_proj"]').click();
      document.querySelector('#map [tabindex="0"]').focus();
      for (const key of ["ArrowDown", "ArrowRight", "Enter"]) press(key);"""
    dom = shown(page, act=act)
    assert chosen(dom) == ["model.layers.1.mlp.up_proj"]


def test_the_table_sorts_and_filters(profile: Profile, page: Path) -> None:
    act = """
      document.querySelector('[data-sort="stable_rank"]').click();
      const filter = document.getElementById("filter");
      filter.value = "q_proj"; filter.dispatchEvent(new Event("input"));"""
    dom = shown(page, act=act)
    body = dom.split('<table id="rows">')[1].split("</table>")[0].split("<tbody>")[1]
    rows = [r for r in profile.rows("weights") if "q_proj" in r["name"]]
    names = [r["name"] for r in sorted(rows, key=lambda r: -r["stable_rank"])]
    assert [re.sub("<[^>]*>", "", head) for head in re.findall(r'<th scope="row">(.*?)</th>', body)] == names
    assert "3 of 10 matrices" in dom


def test_nothing_is_wider_than_a_phone(page: Path) -> None:
    act = """addEventListener("load", () => {
      document.body.dataset.widths = innerWidth + " " + document.documentElement.scrollWidth; });"""
    found = re.search(r'data-widths="(\d+) (\d+)"', shown(page, act=act, size="390,844"))
    assert found
    inner, content = map(int, found.groups())
    assert content <= inner <= 520


def test_hostile_names_and_zero_matrices_are_shown_as_they_are(hostile_profile: Profile, tmp_path: Path) -> None:
    dom = shown(html(hostile_profile, tmp_path / "report.html"), "#select=0.zero")
    assert chosen(dom) == ["0.zero"]
    assert "<img" not in dom
    assert dom.count('role="gridcell"') == 3


def test_a_fast_profile_draws_its_known_values_and_its_ranges(fast_profile: Profile, tmp_path: Path) -> None:
    dom = shown(html(fast_profile, tmp_path / "report.html"), "#select=model.layers.0.mlp.up_proj")
    assert dom.count('class="dot"') == 4
    assert "The 4 largest of 24 singular values are known" in dom


def test_a_fast_profile_opens_with_the_stable_rank_which_it_knows_closely(
    fast_profile: Profile, tmp_path: Path
) -> None:
    dom = shown(html(fast_profile, tmp_path / "report.html"))
    assert re.search(r'<option value="stable_rank"[^>]*selected', dom)
    cells = re.findall(r'<span class="value">(.*?)</span>', dom)
    assert len(cells) == len(fast_profile.entries)
    assert all(cell.startswith("≈ ") for cell in cells)
