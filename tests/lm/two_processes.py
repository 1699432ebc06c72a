"""A tiny fine-tuning of each method that has a rule for its rank, alone or as one of two; run by test_finetuning.

python two_processes.py FOLDER          torchrun --nproc-per-node 2 two_processes.py FOLDER
"""

import os
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import eckart
from eckart.lm import Finetuned, TrainingData, finetune
from eckart.lm.run_folder import processes

SIZES = {
    "vocab_size": 32, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64,
}  # fmt: skip
RUN = {"steps": 8, "save_every": 2, "lr": 1e-2, "packed": False}
RULES = {"lora": {}, "adalora": {"final_rank": 2}, "relora": {"restart_every": 3}}


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def data() -> TrainingData:
    """Documents of several lengths, so that a mean over sequences is not one over tokens."""
    generator = torch.Generator().manual_seed(1)
    made = [torch.randint(1, 32, (4 + i % 7,), generator=generator).tolist() for i in range(24)]
    rows = [{"input_ids": ids, "labels": ids} for ids in made]
    return TrainingData(rows[4:], rows[:4], 16, 0)


def tuned(method: str, folder: Path, **options: object) -> Finetuned:
    """A run of a fresh model."""
    fresh = model()
    eckart.adapt(fresh, method, rank=3)
    return finetune(fresh, None, data(), out=folder, **{**RUN, **RULES[method], **options})  # type: ignore[arg-type]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in RULES:
        tuned(each, Path(sys.argv[1]) / each, batch=4 // processes())
    sys.stdout.flush()
    os._exit(0)  # gloo's threads at times abort a process that ends by itself
