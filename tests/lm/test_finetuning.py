"""`finetune`: rules of ranks are followed and resumed bit for bit; two processes are as one; a run is what it was."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from two_processes import RULES, RUN, data, model, tuned

import eckart
from eckart.adapters import RankSchedule, orthogonality
from eckart.adapters.layers.place import adapters
from eckart.lm import finetune
from eckart.lm.pruning_callback import PruneTriplets

SCRIPT = Path(__file__).parent / "two_processes.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Method → (what finetune returned, its folder)."""
    place = tmp_path_factory.mktemp("runs")
    return {method: (tuned(method, place / method, batch=4), place / method) for method in RULES}


def test_two_processes_give_the_losses_of_one_on_the_same_examples(runs, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=True, cwd=SCRIPT.parent)
    for method, (alone, _) in runs.items():
        report = json.loads((tmp_path / method / "report.json").read_text())
        assert [loss for _, loss in report["losses"]] == pytest.approx([x for _, x in alone.losses], rel=1e-4), method
        assert (report["before"], report["after"]) == pytest.approx((alone.before, alone.after), rel=1e-4)
        assert json.loads((tmp_path / method / "run.json").read_text())["processes"] == 2
        assert any("pruned triplets are still there" in note for note in report["notes"]) == (method == "adalora")


@pytest.mark.parametrize("method", RULES)
def test_batches_that_are_accumulated_give_the_losses_of_one_batch(method, runs, tmp_path):
    done = tuned(method, tmp_path / "run", batch=2, accumulate=2)
    assert [x for _, x in done.losses] == pytest.approx([x for _, x in runs[method][0].losses], rel=1e-4)


@pytest.mark.parametrize("method", RULES)
def test_a_run_that_goes_on_from_any_checkpoint_gives_the_same_bits(method, runs, tmp_path):
    whole, folder = runs[method]
    shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-8")
    shutil.rmtree(tmp_path / "run" / "adapter")
    done = finetune(model(), None, data(), out=tmp_path / "run", batch=4, resume=True, **{**RUN, **RULES[method]})
    assert (done.losses, done.before, done.after) == (whole.losses, whole.before, whole.after)
    once, again = ((each / "adapter" / "adapter_model.safetensors").read_bytes() for each in (folder, tmp_path / "run"))
    assert once == again


def test_adalora_ends_with_the_ranks_that_were_asked_for_and_relora_with_all_its_pairs(runs):
    done, folder = runs["adalora"]
    ranks = done.adaptation.settings.ranks
    assert sum(ranks.values()) == sum(each.rank for each in done.learned) == 2 * 7
    again = model()
    eckart.load(folder / "adapter", into=again)
    assert {name: each.rank for name, each in adapters(again, "default")} == ranks
    again = model()
    eckart.load(runs["relora"][1] / "adapter", into=again)
    assert {each.frozen_A.shape[0] for _, each in adapters(again, "default")} == {2 * 3}  # restarts at steps 3 and 6


def test_the_penalty_of_adalora_joins_the_gradients_once():
    adapted = model()
    eckart.adapt(adapted, "adalora", rank=3)
    factors = [f for _, each in adapters(adapted, "default") for f in (each.P, each.Q)]
    expected = torch.autograd.grad(0.5 * orthogonality(adapted), factors)
    PruneTriplets(adapted, steps=4, target=2).on_step_begin(None, None, None)
    for factor, gradient in zip(factors, expected, strict=True):
        torch.testing.assert_close(factor.grad, gradient)


def test_the_budget_of_adalora_falls_in_the_middle_of_the_run_however_short_it_is():
    adapted = model()
    eckart.adapt(adapted, "adalora", rank=3)
    for steps in (1, 2, 3, 20):
        schedule: RankSchedule = PruneTriplets(adapted, steps=steps, target=2).schedule
        assert schedule.budget(steps) == 2 * 7
    assert schedule.budget(2) == 3 * 7
    assert schedule.budget(10) == 2 * 7


def test_a_rule_of_another_method_and_a_target_above_the_rank_are_refused_before_anything_is_written(tmp_path):
    for method, options, said in (
        ("lora", {"final_rank": 2}, "final_rank: 2; it is for adalora, and this is lora"),
        ("adalora", {"restart_every": 2}, "restart_every: 2; it is for relora, and this is adalora"),
        ("adalora", {"final_rank": 9}, "average rank of 9"),
    ):
        adapted = model()
        eckart.adapt(adapted, method, rank=3)
        with pytest.raises(ValueError, match=said):
            finetune(adapted, None, data(), out=tmp_path / "run", **{**RUN, **options})
    assert not (tmp_path / "run").exists()


def test_an_adapter_made_otherwise_than_the_checkpoint_s_is_refused_and_what_differs_is_named(runs, tmp_path):
    shutil.copytree(runs["lora"][1], tmp_path / "run")
    for options, said in (
        ({"rank": 3, "dropout": 0.5}, "dropout=0.0, the model's with 0.5"),
        ({"rank": 3, "alpha": 1}, "alpha=None, the model's with 1"),
        ({"rank": 2}, "ranks of the checkpoint"),
        ({"rank": 3, "targets": "q_proj"}, "down_proj is in it alone"),
        ({"rank": 3, "method": "dora"}, "method='lora', the model's with 'dora'"),
    ):
        adapted = model()
        eckart.adapt(adapted, **options)
        with pytest.raises(ValueError, match=said):
            finetune(adapted, None, data(), out=tmp_path / "run", batch=4, resume=True, **RUN)
