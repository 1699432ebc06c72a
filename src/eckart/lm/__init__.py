"""Language models and text through transformers: load, look, read text, evaluate, fine-tune, train, compress, bench.

`finetune` and `train` are imported when they are first used: transformers' Trainer takes seconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

from eckart.lm.adapter_callback import AdapterCallback
from eckart.lm.calibration import Calibration, calibration_data
from eckart.lm.callback import SpectraCallback
from eckart.lm.compressed_lm import CompressedLM
from eckart.lm.compressing import compress
from eckart.lm.data import TrainingData, training_data
from eckart.lm.evaluation import Evaluation, evaluate
from eckart.lm.finetuned import Finetuned
from eckart.lm.gguf import cache_folder
from eckart.lm.latency import bench
from eckart.lm.load import LanguageModel, load
from eckart.lm.look import look, next_token_loss
from eckart.lm.perplexity import Perplexity, perplexity
from eckart.lm.quantized_copy import quantized
from eckart.lm.recovery import Recovery, recover
from eckart.lm.resolve import ALIASES, checkpoint_path
from eckart.lm.sampled_loss import SampledLoss
from eckart.lm.saving import densify, save
from eckart.lm.scratch import from_scratch, learn_tokenizer
from eckart.lm.speeds import Bench
from eckart.lm.telemetry_callback import TelemetryCallback
from eckart.lm.text import batches, read_text
from eckart.lm.trained import Trained

if TYPE_CHECKING:
    from eckart.lm.finetuning import finetune
    from eckart.lm.training import train

LATE = {"finetune": "eckart.lm.finetuning", "train": "eckart.lm.training"}

__all__ = [
    "ALIASES",
    "AdapterCallback",
    "Bench",
    "Calibration",
    "CompressedLM",
    "Evaluation",
    "Finetuned",
    "LanguageModel",
    "Perplexity",
    "Recovery",
    "SampledLoss",
    "SpectraCallback",
    "TelemetryCallback",
    "Trained",
    "TrainingData",
    "batches",
    "bench",
    "cache_folder",
    "calibration_data",
    "checkpoint_path",
    "compress",
    "densify",
    "evaluate",
    "finetune",
    "from_scratch",
    "learn_tokenizer",
    "load",
    "look",
    "next_token_loss",
    "perplexity",
    "quantized",
    "read_text",
    "recover",
    "save",
    "train",
    "training_data",
]


def __getattr__(name: str) -> Any:
    if name not in LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(LATE[name]), name)
