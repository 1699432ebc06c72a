"""A Trainer's checkpoints hold the adapter only; going on from one gives the bits of a run that never stopped."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import eckart
from eckart.adapters import METHODS
from eckart.lm import AdapterCallback

SIZES = {
    "vocab_size": 32, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2,
}  # fmt: skip
STEPS = 8


class Stop(TrainerCallback):
    """Kills the run in the middle of things."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt


def _rows(count=24):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 32, (count, 9), generator=generator)
    return [{"input_ids": row, "labels": row.clone()} for row in ids]


def _trainer(folder, method="lora", callbacks=(), attach=True, **options):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    given = {"batches": [_rows(2)[0]], "loss": None} if METHODS[method].wanted else {}
    for batch in given.get("batches", ()):
        batch.update({key: value.unsqueeze(0) for key, value in batch.items()})
    eckart.adapt(model, method, rank=2, dropout=0.2, **given)
    arguments = {
        "max_steps": STEPS, "save_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 2,
        "learning_rate": 1e-2, "gradient_accumulation_steps": 2, "seed": 7, "use_cpu": True, "report_to": "none",
        "disable_tqdm": True,
    }  # fmt: skip
    arguments = TrainingArguments(str(folder), **(arguments | options))
    trainer = Trainer(
        model=model, args=arguments, train_dataset=_rows(), eval_dataset=_rows(4), callbacks=list(callbacks)
    )
    if attach:
        AdapterCallback().attach(trainer)
    return trainer


def _losses(trainer):
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


def _trained(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("method", [name for name in METHODS if name != "loftq"])
def test_a_run_stopped_and_resumed_gives_the_losses_of_one_that_never_stopped_bit_for_bit(method, tmp_path):
    whole = _trainer(tmp_path / "whole", method)
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        _trainer(tmp_path / "cut", method, [Stop()]).train()
    again = _trainer(tmp_path / "cut", method)
    again.train(resume_from_checkpoint=True)
    assert _losses(again) == _losses(whole)
    assert set(_losses(whole)) == set(range(1, STEPS + 1))
    for name, value in _trained(whole.model).items():
        assert torch.equal(_trained(again.model)[name], value), name


def test_a_new_process_goes_on_as_well(tmp_path):
    whole = _trainer(tmp_path / "whole")
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        _trainer(tmp_path / "cut", callbacks=[Stop()]).train()
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); import torch; torch.set_num_threads(int(sys.argv[3])); "
        "import test_adapter_callback as t; trainer = t._trainer(sys.argv[2]); "
        "trainer.train(resume_from_checkpoint=True); print(json.dumps(t._losses(trainer)))"
    )
    arguments = [str(Path(__file__).parent), str(tmp_path / "cut"), str(torch.get_num_threads())]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    last = json.loads(result.stdout.splitlines()[-1])
    assert {int(step): loss for step, loss in last.items()} == _losses(whole)


def test_a_checkpoint_at_the_end_of_an_epoch_is_resumed_too(tmp_path):
    options = {"save_steps": 3, "per_device_train_batch_size": 4}  # 24 rows: 3 steps are an epoch
    whole = _trainer(tmp_path / "whole", **options)
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        _trainer(tmp_path / "cut", callbacks=[Stop()], **options).train()
    again = _trainer(tmp_path / "cut", **options)
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    assert _losses(again) == _losses(whole)


def test_a_checkpoint_holds_the_adapter_and_what_the_trainer_needs_but_no_base_model(tmp_path):
    trainer = _trainer(tmp_path)
    trainer.train()
    files = {file.name: file for file in (tmp_path / "checkpoint-8").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= set(
        files
    )
    assert not {"model.safetensors", "pytorch_model.bin"} & set(files)
    assert not any(file.is_dir() for file in files.values())
    assert (
        files["adapter_model.safetensors"].stat().st_size < sum(p.numel() * 4 for p in trainer.model.parameters()) / 2
    )


def test_a_checkpoint_is_loaded_by_eckart_and_by_peft(tmp_path):
    trainer = _trainer(tmp_path)
    trainer.train()
    torch.manual_seed(0)
    fresh = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    eckart.load(tmp_path / "checkpoint-8", into=fresh)
    ids = _rows(1)[0]["input_ids"].unsqueeze(0)
    with torch.no_grad():
        expected = trainer.model.eval()(ids).logits
        torch.testing.assert_close(fresh(ids).logits, expected)
        peft = pytest.importorskip("peft")
        torch.manual_seed(0)
        theirs = peft.PeftModel.from_pretrained(LlamaForCausalLM(LlamaConfig(**SIZES)), tmp_path / "checkpoint-8")
        torch.testing.assert_close(theirs.eval()(ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_the_best_adapter_is_put_back_at_the_end(tmp_path):
    options = {
        "load_best_model_at_end": True,
        "greater_is_better": True,
    }  # the rows are trained on, so the first is best
    trainer = _trainer(tmp_path, eval_strategy="steps", eval_steps=2, metric_for_best_model="loss", **options)
    trainer.train()
    losses = {e["step"]: e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e}
    best = max(losses, key=losses.get)
    assert best != STEPS, "the last is the best: the test shows nothing"
    assert trainer.evaluate()["eval_loss"] == losses[best]


def test_saving_by_hand_leaves_other_files_of_the_folder_and_the_model_s_own_method(tmp_path):
    trainer = _trainer(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    trainer.save_model()
    trainer.save_model()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert "save_pretrained" not in vars(trainer.model)


def test_resuming_with_another_adapter_is_refused(tmp_path):
    _trainer(tmp_path, max_steps=2).train()
    for method in ("dora", "rslora", "lora-fa"):
        with pytest.raises(ValueError, match=f"method='lora', the model's with '{method}'"):
            _trainer(tmp_path, method).train(resume_from_checkpoint=True)


def test_a_callback_that_is_not_attached_stops_the_training_before_it_begins(tmp_path):
    trainer = _trainer(tmp_path, callbacks=[AdapterCallback()], attach=False)
    with pytest.raises(ValueError, match=r"callback.attach\(trainer\)"):
        trainer.train()


def test_a_model_without_adapters_and_one_that_is_no_transformers_model_are_refused(tmp_path):
    trainer = _trainer(tmp_path, attach=False)
    with pytest.raises(ValueError, match="no adapter 'other'; it has default"):
        AdapterCallback("other").attach(trainer)
    trainer.model = LlamaForCausalLM(LlamaConfig(**SIZES))
    with pytest.raises(ValueError, match="no adapter acts"):
        AdapterCallback().attach(trainer)
    trainer.model = nn.Sequential(nn.Linear(3, 3))
    eckart.adapt(trainer.model, rank=1)
    with pytest.raises(ValueError, match="its model is a Sequential"):
        AdapterCallback().attach(trainer)
