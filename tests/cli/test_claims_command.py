"""`eckart claims`: what it lists, runs, keeps and writes, and its exit codes 0, 1 and 2."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner, Result

from eckart.cli import app, main
from toy_claims import BROKEN, FALSE, LONG, RUNS, TRUE


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry holds the toys instead of the overview."""
    toys = (TRUE, FALSE, BROKEN, LONG)
    for claim in toys:
        monkeypatch.setitem(sys.modules, f"eckart.claims.toy_{claim.id}", SimpleNamespace(CLAIM=claim))
    monkeypatch.setattr("eckart.claims.registry.CLAIMS", {claim.id: f"toy_{claim.id}" for claim in toys})
    RUNS.clear()


def claims(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(app, ["claims", *map(str, arguments)])


def error(*arguments: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What the console script says on stderr of input that it refuses."""
    monkeypatch.setattr(sys, "argv", ["eckart", "claims", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")
    assert "Traceback" not in err
    return err


def test_without_a_command_every_claim_is_listed_under_its_half() -> None:
    out = claims().stdout
    assert "Dynamics: low rank at every step" in out
    assert "T1" in out
    assert "σ₁ grows to 2." in out
    assert "Digits are low-rank." in out
    listed = json.loads(claims("--json").stdout)
    assert [each["id"] for each in listed] == ["T1", "C1", "D1", "D2"]
    assert listed[0].keys() == {"id", "title", "statement", "source", "half", "regime"}
    assert RUNS == []


def test_show_prints_the_statement_its_source_and_where_it_holds() -> None:
    out = claims("show", "t1").stdout
    for words in ("σ₁ grows to 2.", "arXiv 2306.01154, Theorem 1", "Without noise.", "eckart claims run T1"):
        assert words in out
    assert json.loads(claims("show", "T1", "--json").stdout)["regime"] == "Without noise."


def test_one_claim_that_holds_shows_every_number_and_exits_with_zero() -> None:
    result = claims("run", "T1")
    assert result.exit_code == 0
    assert "✓ holds" in result.stdout
    assert "✓ σ₁: measured 2, predicted = 2 (tolerance ± 0.1 %)" in result.stdout


def test_of_many_the_failing_numbers_and_errors_are_shown_and_the_exit_code_is_one() -> None:
    result = claims("run", "T1", "C1", "D1")
    assert result.exit_code == 1
    assert "✗ slope: measured -0.4, predicted = -1 (tolerance ± 0.1)" in result.stdout
    assert "RuntimeError: there are no digits" in result.stdout
    assert "measured 2, predicted" not in result.stdout
    assert RUNS == ["T1", "C1", "D1"]
    assert [line.split(" after")[0] for line in result.stderr.split("\n")[:3]] == ["T1 holds", "C1 fails", "D1 error"]
    assert claims("run", "D1").exit_code == 1


def test_json_is_everything_and_nothing_else_on_stdout() -> None:
    printed = json.loads(claims("run", "T1", "C1", "--seed", "2", "--size", "paper", "--json").stdout)
    assert [(each["id"], each["seed"], each["size"], each["verdict"]) for each in printed] == [
        ("T1", 2, "paper", "holds"), ("C1", 2, "paper", "fails"),
    ]  # fmt: skip
    assert printed[1]["result"]["checks"][0]["measured"] == -0.4


def test_a_page_figures_and_results_are_written_and_kept_results_are_not_run_again(tmp_path: Path) -> None:
    outputs = ["--html", tmp_path / "g.html", "--figures", tmp_path / "figures", "--keep", tmp_path / "kept"]
    assert claims("run", "T1", "C1", *outputs).exit_code == 1
    assert "✓ holds" in (tmp_path / "g.html").read_text()
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["T1.svg"]
    first = (tmp_path / "figures" / "T1.svg").read_bytes()
    result = claims("run", "T1", "C1", *outputs, "--force")
    assert (result.exit_code, RUNS) == (1, ["T1", "C1"])
    assert (tmp_path / "figures" / "T1.svg").read_bytes() == first
    claims("run", "T1", "--keep", tmp_path / "kept", "--fresh")
    assert RUNS == ["T1", "C1", "T1"]


def test_an_interrupted_run_says_how_to_go_on_and_does(tmp_path: Path) -> None:
    stopped = claims("run", "T1", "D2", "--keep", tmp_path)
    assert stopped.exit_code == 130
    assert "the same command goes on" in stopped.stderr
    assert claims("run", "T1", "D2", "--keep", tmp_path).exit_code == 0
    assert RUNS == ["T1", "D2", "D2"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "T9"], "no claim 'T9'; closest: "),
        (["run", "T1", "nuclear"], "no claim 'nuclear'"),
        (["run", "T1", "--size", "huge"], "size must be one of small, paper"),
        (["run", "T1", "--seed", "-1"], "seed must be at least 0"),
        (["run", "T1", "--fresh"], "give --keep too"),
        (["run", "T1", "--html", "{folder}"], "is a folder"),
        (["run", "T1", "--html", "{file}"], "--force"),
        (["run", "T1", "--figures", "{folder}"], "--force"),
        (["run", "T1", "--figures", "{file}", "--force"], "is a file"),
        (["run", "T1", "--keep", "{file}"], "is a file"),
        (["run", "T1", "--keep", "{file}/below"], "is a file, not a folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two_before_anything_runs(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"file": tmp_path / "full" / "file.txt", "folder": tmp_path / "full"}
    places["folder"].mkdir()
    places["file"].write_text("mine")
    given = [argument.format(**places) for argument in arguments]
    err = error(*given, monkeypatch=monkeypatch, capsys=capsys)
    assert "error: " in err
    assert words in err
    assert RUNS == []
    assert places["file"].read_text() == "mine"
