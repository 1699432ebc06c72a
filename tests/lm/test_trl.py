"""TRL's Trainer, which checkpoints gradients by default, with the library's callback and with its optimizer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel, TrainerCallback

import eckart
from eckart.lm import AdapterCallback, checkpoint_path

trl = pytest.importorskip("trl", reason="TRL is not installed (extra peers)")
STEPS, STOP = 6, 4


class Stop(TrainerCallback):
    """Break a run off."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= state.global_step == STOP


def _run(out: Path, way: str, *, broken_off: bool = False, resume: bool = False) -> PreTrainedModel:
    from datasets import Dataset

    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path("minilm"))
    tokenizer.eos_token = tokenizer.sep_token
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **ends))
    optimizers: tuple[Any, None] = (None, None)
    if way == "adapters":
        eckart.adapt(model, rank=2)
    else:
        optimizers = eckart.LowRankOptimizer(model, lr=1e-2, rank=4, method="fira", gap=3), None
    rows = [{"text": f"the rank of product {i} is at most the least rank of its factors"} for i in range(16)]
    args = trl.SFTConfig(str(out), max_steps=STEPS, per_device_train_batch_size=4, use_cpu=True, report_to="none",
                         save_steps=STOP, learning_rate=1e-2, disable_tqdm=True, bf16=False)  # fmt: skip
    trainer = trl.SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
                             optimizers=optimizers, callbacks=[Stop()] if broken_off else None)  # fmt: skip
    if way == "adapters":
        AdapterCallback().attach(trainer)
    trainer.train(resume_from_checkpoint=str(out / f"checkpoint-{STOP}") if resume else None)
    return model


@pytest.mark.parametrize("way", ["adapters", "low-rank states"])
def test_a_run_of_trl_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path: Path, way: str) -> None:
    whole = _run(tmp_path / "whole", way)
    _run(tmp_path / "parts", way, broken_off=True)
    resumed = _run(tmp_path / "parts", way, resume=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    held = sorted(file.name for file in (tmp_path / "parts" / f"checkpoint-{STOP}").iterdir())
    assert ("model.safetensors" in held) == (way != "adapters")
