"""`train`: every method resumes bit for bit, alone, in one's own Trainer and in the backward pass; two are as one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from two_processes import model
from two_training import trained

from eckart.lm import TelemetryCallback, TrainingData, train
from eckart.nn import matrices
from eckart.optim import METHODS, LowRankOptimizer
from families import VOCABULARY, families

SCRIPT = Path(__file__).parent / "two_training.py"


def _weights(folder):
    return (folder / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_any_method_goes_on_within_a_gap_with_the_same_bits(method, tmp_path):
    whole = trained(tmp_path / "whole", batch=4, method=method, lr=METHODS[method].lr)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for name in ("checkpoints/checkpoint-6", "checkpoints/checkpoint-8"):
        shutil.rmtree(tmp_path / "cut" / name, ignore_errors=True)
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "checkpoint-6", tmp_path / "cut" / "checkpoints/checkpoint-6")
    cut = trained(tmp_path / "cut", batch=4, method=method, lr=METHODS[method].lr, resume=True)
    assert (cut.losses, cut.before, cut.after, cut.learned) == (whole.losses, whole.before, whole.after, whole.learned)
    assert _weights(tmp_path / "cut") == _weights(tmp_path / "whole")


def test_a_run_may_go_on_from_steps_to_steps_in_the_backward_pass_only_if_it_began_so(tmp_path):
    whole = trained(tmp_path / "whole", batch=2, accumulate=2, per_layer=True)
    usual = trained(tmp_path / "usual", batch=2, accumulate=2)  # whose gradients are clipped by this step's norm
    assert [x for _, x in whole.losses] == pytest.approx([x for _, x in usual.losses], rel=1e-2)
    shutil.rmtree(tmp_path / "whole" / "checkpoints" / "checkpoint-8")
    cut = trained(tmp_path / "whole", batch=2, accumulate=2, per_layer=True, resume=True)
    assert cut.losses == whole.losses
    with pytest.raises(ValueError, match="per_layer: the run in"):
        trained(tmp_path / "whole", batch=2, accumulate=2, resume=True)


def test_batches_that_are_accumulated_give_the_losses_of_one_batch(tmp_path):
    one, two = trained(tmp_path / "one", batch=4), trained(tmp_path / "two", batch=2, accumulate=2)
    assert [x for _, x in two.losses] == pytest.approx([x for _, x in one.losses], rel=1e-4)


def test_two_processes_give_the_losses_of_one_and_gradients_of_low_rank_others(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=True, cwd=SCRIPT.parent)
    alone = [loss for _, loss in trained(tmp_path / "alone", batch=4).losses]
    found = {}
    for name in ("plain", "whole", "thin"):
        report = json.loads((tmp_path / name / "report.json").read_text())
        found[name] = [loss for _, loss in report["losses"]]
    assert found["plain"] == pytest.approx(alone, rel=1e-4)
    assert found["whole"] == pytest.approx(alone, rel=1e-3)
    assert found["thin"][:3] == pytest.approx(alone[:3], rel=1e-4)  # the first two steps send all
    assert found["thin"] != pytest.approx(alone, rel=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral"])
def test_every_matrix_of_any_family_is_trained_and_what_it_learned_is_told(family, tmp_path):
    built, batches = families()[family]()
    rows = [{"input_ids": ids, "labels": ids} for batch in batches for ids in batch["input_ids"].tolist()]
    done = train(built, None, TrainingData(rows, [], 16, 0), out=tmp_path, rank=2, lr=1e-2, steps=3, batch=2)
    usual = {each.name for each in matrices(built) if each.kind != "embedding" and "head" not in each.name}
    assert {each.name for each in done.learned} == set(done.ranks) == {name.partition("[")[0] for name in usual}
    assert all(0 < each.rank_99 <= 2 for each in done.learned)
    assert VOCABULARY in {len(p) for p in built.parameters()}


class Tracker(TrainerCallback):
    """Keeps what a tracker would send away."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(dict(logs))


def _own(folder, callbacks=()):
    """A Trainer as anyone writes it, with the two lines of ours."""
    built = model()
    generator = torch.Generator().manual_seed(3)
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(1, 32, (24, 9), generator=generator)]
    arguments = TrainingArguments(
        str(folder), max_steps=8, save_steps=2, logging_steps=1, per_device_train_batch_size=2, use_cpu=True,
        gradient_accumulation_steps=2, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    optimizer = LowRankOptimizer(built, lr=1e-2, rank=3, gap=3)
    return Trainer(
        model=built, args=arguments, train_dataset=rows, optimizers=(optimizer, None), callbacks=list(callbacks)
    )


def _losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_anyone_s_own_trainer_takes_the_optimizer_saves_it_and_resumes_bit_for_bit(tmp_path):
    whole = _own(tmp_path)
    whole.train()
    assert _losses(whole)[-1] < _losses(whole)[0]
    cut = _own(tmp_path)
    cut.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert _losses(cut) == _losses(whole)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), cut.model.parameters(), strict=True))


def test_telemetry_reaches_the_trackers_that_were_there_before_and_the_history(tmp_path):
    tracker = Tracker()
    trainer = _own(tmp_path, [tracker])
    TelemetryCallback(trainer.optimizer, every=4).attach(trainer)
    trainer.train()
    name = "optimizer/model.layers.0.mlp.up_proj.weight"
    for entries in (tracker.seen, trainer.state.log_history):
        found = [entry for entry in entries if f"{name}/refreshes" in entry]
        assert [entry[f"{name}/refreshes"] for entry in found] == [2, 3]  # at steps 1, 4 and 7
        assert all(0 < entry[f"{name}/captured_before"] <= entry[f"{name}/captured_after"] <= 1 for entry in found)
        assert all(entry["optimizer/update"] > 0 and "loss" in entry for entry in found)


def test_telemetry_changes_no_step(tmp_path):
    plain, watched = _own(tmp_path / "plain"), _own(tmp_path / "watched")
    TelemetryCallback(watched.optimizer, every=1).attach(watched)
    plain.train()
    watched.train()
    assert _losses(plain) == _losses(watched)


def test_a_loss_that_is_no_number_stops_the_run_and_the_last_checkpoint_stays(tmp_path):
    with pytest.raises(ValueError, match=r"lower lr|NaN or infinite"):
        trained(tmp_path / "run", batch=4, lr=1e30, steps=40)
    assert not (tmp_path / "run" / "model").exists()
