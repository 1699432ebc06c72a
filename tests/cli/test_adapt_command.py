"""eckart adapt, merge, extract, adapters: what they write and print; bad input costs one line and nothing else."""

import json
import shutil

import pytest
import torch

import eckart
from eckart.lm import load
from eckart.nn.files import lora_pairs

USUAL = ("--length", 16, "--batch", 2, "--lr", 0.01)


def test_adapt_trains_reports_and_leaves_an_adapter_that_loads(folder, rows, tmp_path, run):
    out = tmp_path / "tuned"
    code, printed, _ = run("adapt", folder, "--data", rows, "--out", out, "--rank", 4, "--steps", 12, *USUAL)
    assert code == 0
    assert 'lora "default" on 7 matrices of rank 4' in printed
    assert "Perplexity" in printed
    assert "self_attn.q_proj" in printed
    report = json.loads((out / "report.json").read_text())
    assert report["after"] < report["before"]
    assert [step for step, _ in report["evaluations"]] == [3, 6, 9, 12]
    assert sorted(entry.name for entry in (out / "checkpoints").iterdir()) == ["checkpoint-12", "checkpoint-9"]
    assert not list(out.rglob("model.safetensors"))
    model = load(folder).model
    assert eckart.load(out / "adapter", into=model).settings.ranks["model.layers.0.mlp.up_proj"] == 4


def test_adapt_prints_its_report_as_json_and_chooses_ranks(folder, rows, tmp_path, run):
    options = ("--rank", "auto", "--budget", 800, "--json")
    code, printed, _ = run("adapt", folder, "--data", rows, "--out", tmp_path / "o", "--steps", 3, *options, *USUAL)
    assert code == 0
    report = json.loads(printed)
    given = {each["name"]: each["rank"] for each in report["learned"]}
    assert len(set(given.values())) > 1 or len(given) < 7
    assert report["adaptation"]["trained"] <= 800
    assert set(report["ranks"]) == set(given)


def test_a_file_of_ranks_says_what_is_adapted(folder, rows, tmp_path, run):
    (tmp_path / "ranks.json").write_text('{"model.layers.0.mlp.up_proj": 3}')
    options = ("--ranks", tmp_path / "ranks.json", "--steps", 1, "--json")
    code, printed, _ = run("adapt", folder, "--data", rows, "--out", tmp_path / "o", *options, *USUAL)
    assert code == 0
    assert json.loads(printed)["adaptation"]["settings"]["ranks"] == {"model.layers.0.mlp.up_proj": 3}


def test_an_interrupted_run_goes_on_with_the_same_command_and_gives_the_same_losses(folder, rows, tmp_path, run):
    options = ("--data", rows, "--rank", 2, "--dropout", 0.1, "--steps", 8, "--save-every", 2, *USUAL)
    assert run("adapt", folder, *options, "--out", tmp_path / "whole")[0] == 0
    whole = json.loads((tmp_path / "whole" / "report.json").read_text())
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "checkpoint-8")
    (tmp_path / "cut" / "report.json").unlink()
    assert run("adapt", folder, *options, "--out", tmp_path / "cut", "--resume")[0] == 0
    cut = json.loads((tmp_path / "cut" / "report.json").read_text())
    assert (cut["losses"], cut["before"], cut["after"]) == (whole["losses"], whole["before"], whole["after"])


def test_a_run_is_not_resumed_with_other_settings_and_the_difference_is_named(folder, rows, tmp_path, run):
    options = ("--data", rows, "--rank", 2, "--steps", 2, "--out", tmp_path / "o", *USUAL)
    assert run("adapt", folder, *options)[0] == 0
    for key, value in {
        "seed": 5,
        "method": "dora",
        "rank": 3,
        "dropout": 0.5,
        "targets": "q_proj",
        "dtype": "bf16",
    }.items():
        code, _, err = run("adapt", folder, *options, "--resume", f"--{key}", value)
        assert code == 2, key
        assert f"{key}: the run in" in err
    assert run("adapt", folder, *options, "--resume")[0] == 0


def test_a_base_in_bf16_learns_through_an_adapter_in_float32(folder, rows, tmp_path, run):
    options = ("--rank", 2, "--steps", 12, "--dtype", "bf16", "--json")
    code, printed, _ = run("adapt", folder, "--data", rows, "--out", tmp_path / "o", *options, *USUAL)
    assert code == 0
    report = json.loads(printed)
    assert report["after"] < report["before"]
    assert {pair.B.dtype for pair in lora_pairs(tmp_path / "o" / "adapter").values()} == {torch.float32}
    assert run("adapt", folder, "--data", rows, "--out", tmp_path / "o", *options, *USUAL, "--resume")[0] == 0


def test_a_chat_learns_the_assistant_s_turns(folder, tmp_path, run):
    turns = [{"role": "user", "content": "the cat sat"}, {"role": "assistant", "content": "on a mat"}]
    (tmp_path / "chat.jsonl").write_text("\n".join([json.dumps({"messages": turns})] * 20))
    options = ("--data", tmp_path / "chat.jsonl", "--steps", 2, "--json")
    code, printed, _ = run("adapt", folder, *options, "--out", tmp_path / "o", *USUAL)
    assert code == 0
    assert json.loads(printed)["measured_on"] == "4 held-out tokens"  # on a mat .


def _bad(tmp_path):
    """Name → (data, further options, what the message says)."""
    good = '{"text": "the cat sat on a mat"}'
    return {
        "no json": (f"{good}\n{{oops\n", [], "line 2 is not JSON"),
        "another field": (f"{good}\n\n{{\"txt\": \"x\"}}", [], "line 3 has the fields txt"),
        "no string": ('{"text": 7}', [], '"text" of'),
        "an empty text": (f'{good}\n{{"text": " "}}', [], "line 2 is empty"),
        "two kinds": (f'{good}\n{{"prompt": "the", "completion": "cat"}}', [], "line 2 is of the kind pair"),
        "no assistant": ('{"messages": [{"role": "user", "content": "x"}]}', [], "line 1 has no turn of the assistant"),
        "a bad turn": ('{"messages": [{"role": "user"}]}', [], "turn 1 of"),
        "empty data": ("\n", [], "is empty"),
        "too short": ('{"text": "the"}', ["--length", "2"], None),
        "an unknown method": (good, ["--method", "lroa"], "closest: lora"),
        "an unknown target": (good, ["--targets", "q_porj"], "closest: q_proj"),
        "a rank above the dimension": (good, ["--rank", "99"], "whole number from 1 to 32"),
        "a word as rank": (good, ["--rank", "many"], "or auto"),
        "a budget without auto": (good, ["--budget", "1%"], "--rank auto"),
        "a length above the model's": (good, ["--length", "999"], "at most 64"),
        "an unknown dtype": (good, ["--dtype", "int3"], "give float32, bf16 or fp16"),
        "nothing to resume": (good, ["--resume"], "no checkpoint to resume from"),
        "no learning rate": (good, ["--lr", "0"], "lr: 0.0; give a positive number"),
    }  # fmt: skip


@pytest.mark.parametrize("case", [name for name, (_, _, said) in _bad(None).items() if said])
def test_bad_input_is_one_line_exit_code_two_and_writes_nothing(case, folder, tmp_path, run):
    data, options, said = _bad(tmp_path)[case]
    (tmp_path / "bad.jsonl").write_text(data)
    out = tmp_path / "out"
    code, printed, err = run("adapt", folder, "--data", tmp_path / "bad.jsonl", "--out", out, "--steps", 1, *options)
    assert code == 2, err
    assert said in err
    assert "Traceback" not in err
    assert printed == ""
    assert not out.exists()


def test_a_folder_with_something_in_it_is_left_alone(folder, rows, tmp_path, run):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    arguments = ("adapt", folder, "--data", rows, "--out", tmp_path / "out", "--steps", 1, *USUAL)
    assert "--force" in run(*arguments)[2]
    assert "no run.json" in run(*arguments, "--force")[2]
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.fixture
def tuned(folder, rows, tmp_path, run):
    """An adapter that has learned something."""
    arguments = ("--data", rows, "--out", tmp_path / "run", "--rank", 2, "--steps", 8, *USUAL)
    assert run("adapt", folder, *arguments)[0] == 0
    return tmp_path / "run" / "adapter"


def test_merge_writes_a_model_that_computes_what_the_adapter_did(folder, tuned, tmp_path, run):
    code, printed, _ = run("merge", folder, "--adapter", tuned, "--out", tmp_path / "merged")
    assert code == 0
    assert "merged 7 matrices; rounding took at most" in printed
    ids = torch.tensor([[1, 2, 3, 4]])
    model = load(folder).model
    eckart.load(tuned, into=model)
    merged, tokenizer, _ = load(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)
    assert tokenizer("the cat")["input_ids"] == [1, 2]


def test_merging_into_bf16_is_refused_where_rounding_takes_too_much_and_writes_nothing(folder, tuned, tmp_path, run):
    arguments = ("merge", folder, "--adapter", tuned, "--out", tmp_path / "merged", "--dtype", "bf16")
    code, printed, err = run(*arguments, "--tolerance", 0.0001)
    assert (code, printed) == (2, "")
    assert "Remedies" in err
    assert not (tmp_path / "merged").exists()
    code, printed, _ = run(*arguments, "--tolerance", 0.9, "--json")
    assert code == 0
    assert 0 < max(each["error"] for each in json.loads(printed)["matrices"].values()) < 0.9
    assert load(tmp_path / "merged", dtype=None).model.dtype == torch.bfloat16


def test_an_adapter_of_another_model_is_refused(folder, tuned, tmp_path, run):
    torch.manual_seed(1)
    other = load(folder).model
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    other.save_pretrained(tmp_path / "other")
    code, _, err = run("merge", tmp_path / "other", "--adapter", tuned, "--out", tmp_path / "merged")
    assert code == 2
    assert "not the base of the adapter" in err


def test_extract_gives_back_what_was_merged(folder, tuned, tmp_path, run):
    assert run("merge", folder, "--adapter", tuned, "--out", tmp_path / "merged")[0] == 0
    code, printed, _ = run("extract", folder, tmp_path / "merged", "--rank", 2, "--out", tmp_path / "extracted")
    assert code == 0
    assert "7 matrices of rank 2" in printed
    ours, theirs = lora_pairs(tmp_path / "extracted"), lora_pairs(tuned)
    for name, (B, A, scale) in theirs.items():
        torch.testing.assert_close(ours[name].scale * ours[name].B @ ours[name].A, scale * B @ A, rtol=1e-3, atol=1e-6)


def test_extract_needs_one_of_rank_and_energy_and_two_models_that_differ(folder, tmp_path, run):
    assert "one of --rank and --energy" in run("extract", folder, folder, "--out", tmp_path / "x")[2]
    assert "nothing to extract" in run("extract", folder, folder, "--rank", 2, "--out", tmp_path / "x")[2]
    assert not (tmp_path / "x").exists()


def test_adapters_are_described_and_added_up(tuned, tmp_path, run):
    code, printed, _ = run("adapters", "info", tuned)
    assert code == 0
    assert "7 matrices of rank 2" in printed
    told = json.loads(run("adapters", "info", tuned, "--json")[1])
    assert (told["method"], told["peft_type"]) == ("lora", "LORA")
    assert set(told["used"]) == set(told["ranks"])
    options = ("--weights", "0.75,0.25", "--energy", 1.0, "--out", tmp_path / "sum")
    assert run("adapters", "combine", tuned, tuned, *options)[0] == 0
    for name, (B, A, scale) in lora_pairs(tuned).items():
        got = lora_pairs(tmp_path / "sum")[name]
        torch.testing.assert_close(got.scale * got.B @ got.A, scale * B @ A, rtol=1e-4, atol=1e-6)
    code, _, err = run("adapters", "combine", tuned, tuned, "--weights", "1", "--out", tmp_path / "other")
    assert code == 2
    assert "weights" in err
    assert "lora-fa" in run("adapters")[1]
