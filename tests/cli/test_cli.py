"""The command line: what it prints, what it writes, and that bad input costs one line and exit code 2."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import eckart
from eckart.cli import app, main
from families import families

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    families()["llama"]()[0].save_pretrained(folder)
    return folder


def _run(
    *arguments: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Run `eckart` in this process as its console script does: (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["eckart", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def test_measure_prints_the_rows_of_measure_as_json(checkpoint: Path) -> None:
    result = CliRunner().invoke(app, ["measure", str(checkpoint), "--json"])
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    assert printed["rows"] == json.loads(json.dumps(eckart.measure(checkpoint).rows()))
    assert (printed["source"], printed["mode"]) == (str(checkpoint), "full")


def test_measure_prints_a_table_of_kinds_and_with_all_a_line_for_each_matrix(checkpoint: Path) -> None:
    short = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["measure", str(checkpoint)])
    assert "self_attn.q_proj  × 2" in short.stdout
    long = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["measure", str(checkpoint), "--all", "--fast"])
    assert "model.layers.1.self_attn.q_proj" in long.stdout
    assert "fast" in long.stdout


def test_measure_writes_ranks_a_page_and_a_profile(checkpoint: Path, tmp_path: Path) -> None:
    ranks, page, kept = tmp_path / "ranks.json", tmp_path / "report.html", tmp_path / "profile"
    arguments = [
        "measure",
        str(checkpoint),
        "--ranks",
        str(ranks),
        "--budget",
        "0.7",
        "--html",
        str(page),
        "--save",
        str(kept),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(ranks.read_text()) == eckart.measure(checkpoint).suggest_ranks(0.7)
    assert "<html" in page.read_text()
    assert eckart.Profile.load(kept).source == str(checkpoint)


def test_updates_between_two_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    tuned, _ = families()["llama"]()
    tuned.model.layers[0].mlp.up_proj.weight.data[0] += 1
    tuned.save_pretrained(tmp_path / "tuned")
    result = CliRunner().invoke(
        app, ["measure", str(tmp_path / "tuned"), "--base", str(checkpoint), "--of", "updates", "--json"]
    )
    moved = [r["name"] for r in json.loads(result.stdout)["rows"] if r["norm"] > 0]
    assert moved == ["model.layers.0.mlp.up_proj"]


def _bad_inputs(folder: Path) -> dict[str, tuple[list[str], str]]:
    """Name → (arguments, what the message says)."""
    (folder / "empty").mkdir()
    good = {"layers.0.weight": torch.randn(8, 6), "layers.1.weight": torch.randn(6, 8)}
    save_file(good, folder / "good.safetensors")
    (folder / "truncated.safetensors").write_bytes((folder / "good.safetensors").read_bytes()[:-40])
    save_file(good | {"layers.1.weight": torch.full((6, 8), torch.nan)}, folder / "nan.safetensors")
    save_file({"norm.weight": torch.ones(4)}, folder / "vectors.safetensors")
    (folder / "weights.bin").write_bytes(pickle.dumps({"a": 1}))
    (folder / "blank.txt").write_text("  \n")
    return {
        "an empty folder": ([str(folder / "empty")], "empty folder"),
        "nothing there": ([str(folder / "nowhere")], "nowhere"),
        "a truncated file": ([str(folder / "truncated.safetensors")], "truncated"),
        "a NaN": ([str(folder / "nan.safetensors")], "layers.1: "),
        "no matrices": ([str(folder / "vectors.safetensors")], "no matrices"),
        "a pickle": ([str(folder / "weights.bin")], "safetensors"),
        "a blank text": (["smollm2-135m", "--text", str(folder / "blank.txt")], "no text"),
        "an unknown source": ([str(folder / "good.safetensors"), "--of", "spectra"], "of must name some of"),
        "updates of nothing": ([str(folder / "good.safetensors"), "--of", "updates"], "needs base= or adapter="),
        "an unknown target": ([str(folder / "good.safetensors"), "--targets", "layer.7"], "closest"),
        "a budget above one": ([str(folder / "good.safetensors"), "--budget", "2"], "budget"),
        "ranks from fast": ([str(folder / "good.safetensors"), "--fast"], "--ranks"),
        "text that nothing reads": (
            [str(folder / "good.safetensors"), "--text", "pydoc", "--of", "weights"],
            "text is for",
        ),
    }


CASES = (
    "an empty folder",
    "nothing there",
    "a truncated file",
    "a NaN",
    "no matrices",
    "a pickle",
    "a blank text",
    "an unknown source",
    "updates of nothing",
    "an unknown target",
    "a budget above one",
    "ranks from fast",
    "text that nothing reads",
)


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_exit_code_two_and_writes_nothing(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = _bad_inputs(tmp_path)[case]
    outputs = [tmp_path / "out.html", tmp_path / "out.json", tmp_path / "out"]
    options = ["--html", outputs[0], "--ranks", outputs[1], "--save", outputs[2]]
    code, out, err = _run("measure", *arguments, *options, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert "Traceback" not in err
    assert "error: " in err
    assert message in err
    assert out == ""
    assert not any(path.exists() for path in outputs)


@pytest.mark.parametrize("place", ["file/x.html", "folder", "out.json"])
def test_a_path_that_cannot_be_written_stops_the_work_before_it_begins(
    place: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    options = ["--ranks", tmp_path / "out.json", "--html", tmp_path / place, "--force"]
    code, _, err = _run("measure", checkpoint, *options, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert "error: " in err
    assert not (tmp_path / "out.json").exists()


def test_an_existing_output_stops_the_work_before_it_begins(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    page.write_text("mine")
    code, _, err = _run("measure", checkpoint, "--html", page, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, page.read_text()) == (2, "mine")
    assert "--force" in err
    code, _, _ = _run("measure", checkpoint, "--html", page, "--force", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert page.read_text() != "mine"


def test_help_teaches_and_the_page_of_the_docs_is_the_help(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert "measure" in result.stdout
    assert "demo" in result.stdout
    made = tmp_path / "cli.md"
    command = [str(Path(sys.executable).parent / "typer"), "eckart.cli", "utils", "docs", "--name", "eckart"]
    subprocess.run([*command, "--output", str(made)], check=True, capture_output=True)
    assert made.read_text() == (ROOT / "docs" / "cli.md").read_text(), f"write it again: {' '.join(command[1:])}"


@pytest.mark.slow
def test_the_demo_measures_a_real_model_and_leaves_a_report(tmp_path: Path) -> None:
    result = CliRunner(env={"COLUMNS": "160"}).invoke(
        app, ["demo", "--out", str(tmp_path / "demo"), "--tokens", "1024", "--steps", "2"]
    )
    assert result.exit_code == 0, result.output
    profile = eckart.Profile.load(tmp_path / "demo" / "profile")
    assert profile.kinds == ["weights", "activations"]
    assert len(profile.rows("weights")) == 211
    assert len(json.loads((tmp_path / "demo" / "ranks.json").read_text())) == 210
    assert "SmolLM2-135M" in (tmp_path / "demo" / "report.html").read_text()
    assert "law of parsimony" in (tmp_path / "demo" / "claims.html").read_text().lower()
    assert "self_attn.q_proj  × 30" in result.stdout
    assert "Perplexity" in result.stdout
    assert (tmp_path / "demo" / "adapted" / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "demo" / "trained" / "model" / "model.safetensors").is_file()
    assert "AdamW's, in the weights' type" in result.stdout
    assert (tmp_path / "demo" / "compressed" / "report.json").is_file()
    assert "Prefill: " in result.stdout
