"""eckart train: what it writes and prints; a killed run goes on; bad input costs one line and nothing else."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eckart.lm import load
from eckart.nn.files import open_checkpoint

SEEDS = {"a": 1, "b": 1, "c": 2}
USUAL = ("--rank", 4, "--gap", 3, "--length", 16, "--batch", 2)
# `eckart train` that is killed while it writes the checkpoint of step 6.
KILLED = """
import os, signal, sys
from eckart.cli import main
from eckart.lm.trainer import TextTrainer

save = TextTrainer._save_optimizer_and_scheduler

def killed(trainer, folder):
    if trainer.state.global_step == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    save(trainer, folder)

TextTrainer._save_optimizer_and_scheduler = killed
sys.argv[0] = "eckart"
main()
"""


def test_train_writes_a_model_that_loads_and_reports_its_memory_beside_adamw_s(folder, rows, tmp_path, run):
    out = tmp_path / "run"
    code, printed, err = run("train", folder, "--data", rows, "--out", out, "--steps", 12, "--lr", 0.02, *USUAL)
    assert code == 0, err
    assert "galore on 7 matrices of rank 4" in printed
    assert "AdamW's, in the weights' type, " in printed
    report = json.loads((out / "report.json").read_text())
    assert report["after"] < report["before"] / 2
    assert [step for step, _ in report["evaluations"]] == [3, 6, 9, 12]
    assert sorted(entry.name for entry in (out / "checkpoints").iterdir()) == ["checkpoint-12", "checkpoint-9"]
    model, tokenizer, _ = load(out / "model")
    assert len(tokenizer) == len(load(folder).tokenizer)
    trained = sum(p.numel() for p in model.parameters())
    assert report["memory"]["adamw"] == 2 * 4 * trained
    kept = torch.load(out / "checkpoints" / "checkpoint-12" / "optimizer.pt", weights_only=True)["state"]
    assert report["memory"]["states"] == sum(t.nbytes for state in kept.values() for t in state.values())
    assert report["memory"]["states"] < report["memory"]["adamw"] / 2
    name = "model.layers.0.mlp.up_proj"
    change = model.get_submodule(name).weight.data - open_checkpoint(out / "start.safetensors").read(f"{name}.weight")
    entry = next(each for each in report["learned"] if each["name"] == name)
    assert entry["values"][0] == pytest.approx(torch.linalg.matrix_norm(change, 2).item(), rel=1e-4)
    assert 4 < entry["rank_99"] <= 4 * 4  # four bases of rank 4
    assert report["telemetry"][f"{name}.weight"]["refreshes"] == 4


def test_what_it_says_next_can_be_run(folder, rows, tmp_path, run):
    out = tmp_path / "run"
    code, _, err = run("train", folder, "--data", rows, "--out", out, "--steps", 2, *USUAL)
    assert code == 0
    said = next(line for line in err.splitlines() if "next: eckart measure" in line).partition("next: eckart ")[2]
    page = tmp_path / "learned.html"
    code, printed, _ = run(*said.replace("learned.html", str(page)).split())
    assert code == 0
    assert "q_proj" in printed
    assert page.is_file()


def test_a_config_alone_is_trained_from_scratch_the_same_for_the_same_seed(folder, rows, tmp_path, run):
    config = shutil.copy(folder / "config.json", tmp_path / "config.json")
    options = ("--data", rows, "--from-scratch", "--tokenizer", folder, "--steps", 4, "--json", *USUAL)
    first, again, other = (
        run("train", config, *options, "--out", tmp_path / name, "--seed", seed) for name, seed in SEEDS.items()
    )
    assert first[0] == 0, first[2]
    losses = [json.loads(printed)["losses"] for _, printed, _ in (first, again, other)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
    assert json.loads(first[1])["method"] == "galore"
    assert load(tmp_path / "a" / "model").tokenizer is not None


def test_a_file_of_ranks_says_which_matrices_get_a_subspace(folder, rows, tmp_path, run):
    (tmp_path / "ranks.json").write_text('{"model.layers.0.mlp.up_proj": 3, "model.layers.0.self_attn.q_proj": 2}')
    options = ("--ranks", tmp_path / "ranks.json", "--length", 16, "--steps", 1, "--json")
    code, printed, err = run("train", folder, "--data", rows, "--out", tmp_path / "o", *options)
    assert code == 0, err
    assert json.loads(printed)["ranks"] == {"model.layers.0.mlp.up_proj": 3, "model.layers.0.self_attn.q_proj": 2}


def test_a_killed_run_loses_the_steps_since_its_last_checkpoint_and_no_bit_more(folder, rows, tmp_path, run):
    options = ("--data", rows, "--steps", 8, "--save-every", 2, "--method", "fira", "--lr", 0.01, *USUAL)
    assert run("train", folder, *options, "--out", tmp_path / "whole")[0] == 0
    command = [sys.executable, "-c", KILLED, "train", str(folder), *map(str, options), "--out", str(tmp_path / "cut")]
    ended = subprocess.run(command, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    half = tmp_path / "cut" / "checkpoints" / "checkpoint-6"
    assert [file.name for file in half.iterdir() if "model" in file.name] == ["model.safetensors"]
    code, _, err = run("train", folder, *options, "--out", tmp_path / "cut", "--resume")
    assert code == 0, err
    whole, cut = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "cut"))
    for key in ("losses", "before", "after", "learned"):
        assert cut[key] == whole[key], key
    once, again = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert once == again
    assert run("train", folder, *options, "--out", tmp_path / "cut", "--resume")[0] == 0  # it has nothing left to do


def test_a_run_is_not_resumed_with_other_settings_and_the_difference_is_named(folder, rows, tmp_path, run):
    options = ("--data", rows, "--steps", 2, "--out", tmp_path / "o", *USUAL)
    assert run("train", folder, *options)[0] == 0
    changes = {"seed": 5, "method": "fira", "rank": 3, "targets": "q_proj", "dtype": "bf16", "weight-decay": 0.1}
    for key, value in changes.items():
        code, _, err = run("train", folder, *options, "--resume", f"--{key}", value)
        assert code == 2, key
        assert f"{key.replace('-', '_')}: the run in" in err
    code, _, err = run("train", folder, *options, "--resume", "--per-layer")
    assert "per_layer: the run in" in err


def test_weights_in_bf16_learn_step_by_step_within_the_backward_pass(folder, rows, tmp_path, run):
    options = ("--steps", 12, "--dtype", "bf16", "--per-layer", "--accumulate", 2, "--lr", 0.02, "--json")
    code, printed, err = run("train", folder, "--data", rows, "--out", tmp_path / "o", *options, *USUAL)
    assert code == 0, err
    report = json.loads(printed)
    assert report["after"] < report["before"] / 2
    infos = open_checkpoint(tmp_path / "o" / "model").tensors()
    assert {info.dtype for info in infos.values()} == {torch.bfloat16}


def _bad(folder):
    """Name → (model, further options, what the message says)."""
    return {
        "an unknown method": (folder, ["--method", "galor"], "closest: galore"),
        "rank 0": (folder, ["--rank", "0"], "rank: 0 for model.layers.0"),
        "a rank above all dimensions": (folder, ["--rank", "99"], "rank: 99 for model.layers.0"),
        "a word as rank": (folder, ["--rank", "many"], "a share such as 0.25"),
        "rank and ranks": (folder, ["--rank", "4", "--ranks", "ranks.json"], "leave out --rank"),
        "ranks that are not there": (folder, ["--ranks", "ranks.json"], "there is no file ranks.json"),
        "an unknown target": (folder, ["--rank", "4", "--targets", "q_porj"], "closest: q_proj"),
        "no learning rate": (folder, ["--rank", "4", "--lr", "0"], "lr: 0.0; give a positive number"),
        "gap 0": (folder, ["--rank", "4", "--gap", "0"], "gap: 0; a whole number of steps"),
        "a negative decay": (folder, ["--rank", "4", "--weight-decay=-1"], "weight_decay: -1.0; a number, at least 0"),
        "float16": (folder, ["--rank", "4", "--dtype", "fp16"], "float16 weights are too coarse"),
        "a length above the model's": (folder, ["--rank", "4", "--length", "999"], "at most 64"),
        "one process with powersgd": (folder, ["--rank", "4", "--powersgd", "4"], "start several with torchrun"),
        "nothing to resume": (folder, ["--rank", "4", "--resume"], "no checkpoint to resume from"),
        "a tokenizer of a trained model": (folder, ["--tokenizer", "minilm"], "--tokenizer is for --from-scratch"),
        "a config without weights": (folder / "config.json", [], "--from-scratch begins with random ones"),
        "no config": (folder.parent, ["--from-scratch"], "holds no config.json"),
        "another folder's name": ("nobody", ["--from-scratch"], "'nobody' is no config.json"),
        "too many words": (folder, ["--from-scratch", "--tokenizer", "minilm"], "set vocab_size to 30522"),
        "no language model": ("minilm", ["--from-scratch"], "no causal language model"),
    }  # fmt: skip


def test_a_matrix_smaller_than_the_rank_is_left_to_adamw_and_named(folder, rows, tmp_path, run):
    options = ("--rank", 17, "--length", 16, "--steps", 1, "--json")
    code, printed, _ = run("train", folder, "--data", rows, "--out", tmp_path / "o", *options)
    assert code == 0
    report = json.loads(printed)
    assert "model.layers.0.self_attn.k_proj" not in report["ranks"]
    assert any("self_attn.k_proj" in note and "AdamW" in note for note in report["notes"])


@pytest.mark.parametrize("case", list(_bad(Path())))
def test_bad_input_is_one_line_exit_code_two_and_writes_nothing(case, folder, rows, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, options, said = _bad(folder)[case]
    out = tmp_path / "out"
    code, printed, err = run("train", model, "--data", rows, "--out", out, "--steps", 1, "--length", 16, *options)
    assert code == 2, err
    assert said in err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1
    assert printed == ""
    assert not out.exists()


def test_a_folder_with_something_in_it_is_left_alone(folder, rows, tmp_path, run):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    arguments = ("train", folder, "--data", rows, "--out", tmp_path / "out", "--steps", 1, *USUAL)
    assert "--force" in run(*arguments)[2]
    assert "no run.json" in run(*arguments, "--force")[2]
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]
