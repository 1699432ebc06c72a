"""eckart compress, eval, bench: what they write and print; bad input costs one line and nothing else."""

import json
import signal
import subprocess
import sys

import pytest
import torch

from eckart.lm import load

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "its", "own", "rank", "fall")
USUAL = ("--sequences", 6, "--length", 16, "--method", "two-sided")
# `eckart compress` that is killed when its model is to be written.
KILLED = """
import os, signal, sys
from eckart.cli import main
from eckart.lm import CompressedLM

CompressedLM.save = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
sys.argv[0] = "eckart"
main()
"""


@pytest.fixture
def text(tmp_path):
    """Two thousand words in no order."""
    order = torch.randint(len(WORDS), (2000,), generator=torch.Generator().manual_seed(0))
    (tmp_path / "text.txt").write_text(" ".join(WORDS[i] for i in order))
    return tmp_path / "text.txt"


@pytest.fixture
def small(folder, text, tmp_path, run):
    """The model at half its bytes."""
    code, _, err = run("compress", folder, "--keep", 0.5, "--calibrate", text, "--out", tmp_path / "small", *USUAL)
    assert code == 0, err
    return tmp_path / "small"


def test_compress_writes_a_smaller_model_that_loads_and_says_what_became_of_it(folder, text, tmp_path, run):
    (tmp_path / "other.txt").write_text(text.read_text()[::-1])
    out, page = tmp_path / "small", tmp_path / "page.html"
    options = (
        "--evaluate",
        tmp_path / "other.txt",
        "--tokens",
        64,
        "--context",
        32,
        "--curve",
        "0.8,0.4",
        "--html",
        page,
        "--int8",
    )
    code, printed, err = run("compress", folder, "--keep", 0.5, "--calibrate", text, "--out", out, *USUAL, *options)
    assert code == 0, err
    assert "self_attn.q_proj" in printed
    assert "Perplexity" in printed
    assert "(plain int8 " in printed
    assert "what each budget would lose" in printed
    assert f"wrote {out}" in err
    assert "<title>tiny" in page.read_text()
    report = json.loads((out / "report.json").read_text())
    assert report["kept"] <= 0.5
    assert [point["keep"] for point in report["curve"]] == [0.8, 0.4]
    assert report["curve"][0]["error"] < report["curve"][1]["error"]
    model, tokenizer, _ = load(out)
    dense = load(folder).model
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in dense.parameters())
    assert len(tokenizer) == len(load(folder).tokenizer)


def test_a_plan_shows_every_matrix_and_writes_nothing(folder, text, tmp_path, run):
    before = sorted(tmp_path.iterdir())
    code, printed, err = run("compress", folder, "--plan-only", "--calibrate", text, "--json", *USUAL)
    assert code == 0, err
    plan = json.loads(printed)
    assert sorted(name for row in plan["rows"] for name in row["matrices"]) == sorted(
        f"model.layers.0.{kind}"
        for kind in [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    )
    assert plan["perplexities"] == []
    assert sorted(tmp_path.iterdir()) == before
    assert run("compress", folder, "--plan-only", "--calibrate", text, "--all", *USUAL)[1].count("model.layers.0") == 7


def test_a_file_of_ranks_says_what_is_compressed(folder, text, tmp_path, run):
    (tmp_path / "ranks.json").write_text('{"model.layers.0.mlp.up_proj": 3}')
    options = ("--ranks", tmp_path / "ranks.json", "--plan-only", "--json", "--calibrate", text)
    code, printed, err = run("compress", folder, *options, *USUAL)
    assert code == 0, err
    sizes = {row["name"]: row["size"] for row in json.loads(printed)["rows"] if row["form"] != "dense"}
    assert sizes == {"model.layers.0.mlp.up_proj": 3}


def test_texts_are_mixed_by_their_weights(folder, text, tmp_path, run):
    (tmp_path / "a:3").write_text(text.read_text())
    options = ("--calibrate", f"{text}:2", "--calibrate", tmp_path / "a:3", "--plan-only", "--json")
    code, printed, err = run("compress", folder, *options, *USUAL)
    assert code == 0, err
    mixture = {each["text"]: (each["weight"], each["sequences"]) for each in json.loads(printed)["calibration"]}
    assert mixture == {str(text): (2.0, 4), str(tmp_path / "a:3"): (1.0, 2)}


def test_a_killed_run_goes_on_with_what_it_had_learned_and_gives_the_same_model(folder, text, small, tmp_path, run):
    out = tmp_path / "again"
    arguments = ("compress", folder, "--keep", 0.5, "--calibrate", text, "--out", out, "--work", tmp_path / "w", *USUAL)
    command = [sys.executable, "-c", KILLED, *map(str, arguments)]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert not out.exists()
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "w").rglob("*.safetensors")}
    assert kept
    assert run(*arguments)[0] == 0
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    first, second = load(small).model.state_dict(), load(out).model.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_speed_beside_the_dense_model_is_measured_when_asked(folder, text, tmp_path, run, monkeypatch):
    monkeypatch.setattr("eckart.lm.compressed.compressed_lm.bench", _quick_bench())
    options = ("--keep", 0.5, "--calibrate", text, "--out", tmp_path / "o", "--speed", *USUAL)
    code, printed, err = run("compress", folder, *options)
    assert code == 0, err
    assert "Prefill: " in printed
    assert "Decode: " in printed


def _quick_bench():
    from eckart.lm import bench

    return lambda model, **options: bench(model, **options | {"prompt": 8, "new": 2, "rounds": 1})


BAD = {
    "no folder": ((), "--out"),
    "a folder for a plan": (("--out", "o", "--plan-only"), "--plan-only"),
    "keep of nought": (("--out", "o", "--keep", 0), "--keep: '0.0'"),
    "keep above one": (("--out", "o", "--keep", 1.5), "--keep: '1.5'"),
    "both keep and ranks": (("--out", "o", "--keep", 0.5, "--ranks", "ranks.json"), "leave out --keep"),
    "a curve of words": (("--out", "o", "--curve", "0.9,high"), "--curve: 'high'"),
    "an unknown recovery": (("--out", "o", "--recover", "prayer"), "--recover"),
    "an unknown method": (("--out", "o", "--method", "magic"), "method"),
    "a text twice": (("--out", "o", "--calibrate", "text.txt", "--calibrate", "text.txt:2"), "given twice"),
    "no such text": (("--out", "o", "--calibrate", "nowhere.txt"), "nowhere.txt"),
    "a blank text": (("--out", "o", "--calibrate", "blank.txt"), "no text"),
    "a negative weight": (("--out", "o", "--calibrate", "text.txt:-1"), "weight"),
    "an unknown target": (("--out", "o", "--calibrate", "text.txt", "--targets", "layer.7"), "layer.7"),
    "an unknown type": (("--out", "o", "--dtype", "int3"), "--dtype"),
    "a page over another": (("--out", "o", "--html", "text.txt"), "--force"),
    "a folder of other files": (("--out", "other", "--force"), "other"),
    "what is evaluated alone": (
        ("--out", "o", "--calibrate", "text.txt", "--evaluate", "text.txt"),
        "evaluated",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_exit_code_two_and_writes_nothing(case, folder, text, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "ranks.json").write_text("{}")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    arguments, message = BAD[case]
    code, printed, err = run("compress", folder, "--sequences", 4, "--length", 16, *arguments)
    assert (code, printed) == (2, "")
    assert message in err
    assert "error: " in err
    assert "Traceback" not in err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_model_in_the_folder_is_kept_without_force_and_replaced_with_it(folder, text, small, run):
    arguments = ("compress", folder, "--keep", 0.9, "--calibrate", text, "--out", small, *USUAL)
    before = (small / "report.json").read_text()
    code, _, err = run(*arguments)
    assert (code, (small / "report.json").read_text()) == (2, before)
    assert "--force" in err
    assert run(*arguments, "--force")[0] == 0
    assert (small / "report.json").read_text() != before


def test_a_compressed_model_is_not_compressed_again_by_accident(small, text, tmp_path, run):
    code, _, err = run("compress", small, "--calibrate", text, "--out", tmp_path / "o", *USUAL)
    assert code == 2
    assert "compressed" in err
    assert not (tmp_path / "o").exists()


def test_eval_shows_two_models_side_by_side(folder, small, text, run):
    options = ("--text", text, "--context", 32, "--tokens", 96)
    code, printed, err = run("eval", small, *options, "--against", folder, "--json")
    assert code == 0, err
    (row,) = json.loads(printed)["texts"]
    assert row["ratio"] == pytest.approx(row["perplexity"] / row["against"])
    (alone,) = json.loads(run("eval", folder, *options, "--json")[1])["texts"]
    assert alone["perplexity"] == row["against"]
    code, printed, err = run("eval", small, *options, "--against", folder)
    assert f"{row['perplexity']:.2f}" in printed
    assert "note: " in err


def test_bench_compares_a_compressed_model_with_its_own_dense_form_and_with_others(folder, small, run):
    options = ("--prompt", 8, "--new", 2, "--repeats", 1)
    code, printed, err = run("bench", small, *options, "--json")
    assert code == 0, err
    rows = json.loads(printed)["rows"]
    assert [(row["phase"], row["model"]) for row in rows] == [
        (phase, model) for phase in ("prefill", "decode") for model in ("dense", "compressed")
    ]
    assert rows[1]["bytes"] < rows[0]["bytes"]
    code, printed, err = run("bench", small, *options, "--against", folder, "--int8")
    assert code == 0, err
    assert "int8" in printed
    assert "prefill, 8" in printed


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("eval", ("--text", "nowhere.txt"), "nowhere.txt"),
        ("eval", ("--text", "pydoc", "--context", 5000), "context"),
        ("eval", ("--text", "pydoc", "--dtype", "int3"), "--dtype"),
        ("bench", ("--prompt", 5000), "prompt"),
        ("bench", ("--int8",), "--against"),
    ],
)
def test_bad_input_of_eval_and_bench_is_one_line(command, arguments, message, folder, run):
    code, printed, err = run(command, folder, *arguments)
    assert (code, printed) == (2, "")
    assert "error: " in err
    assert message in err
    assert "Traceback" not in err
