"""Language models and text through transformers: load, look, read text, evaluate, fine-tune, train, compress, bench.

`finetune` and `train` are imported when they are first used: transformers' Trainer takes seconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

from eckart.lm.adapter_callback import AdapterCallback
from eckart.lm.calibration import Calibration, calibration_data
from eckart.lm.callback import SpectraCallback
from eckart.lm.compressed.compressed_lm import CompressedLM
from eckart.lm.compressed.compressing import compress
from eckart.lm.compressed.recovery import Recovery, recover
from eckart.lm.compressed.sampled_loss import SampledLoss
from eckart.lm.data import TrainingData, training_data
from eckart.lm.finetuned import Finetuned
from eckart.lm.gguf import cache_folder
from eckart.lm.judging.evaluation import Evaluation, evaluate
from eckart.lm.judging.latency import bench
from eckart.lm.judging.quantized_copy import quantized
from eckart.lm.judging.speeds import Bench
from eckart.lm.load import LanguageModel, load
from eckart.lm.look import look, next_token_loss
from eckart.lm.perplexity import Perplexity, perplexity
from eckart.lm.resolve import ALIASES, checkpoint_path
from eckart.lm.saving import densify, save
from eckart.lm.scratch import from_scratch, learn_tokenizer
from eckart.lm.telemetry_callback import TelemetryCallback
from eckart.lm.text import batches, read_text
from eckart.lm.trained import Trained

if TYPE_CHECKING:
    from eckart.lm.finetuning import finetune
    from eckart.lm.kv_cache.compressing import compress_cache
    from eckart.lm.kv_cache.result import cached_bytes, load_cache
    from eckart.lm.training import train

LATE = {
    "cached_bytes": "eckart.lm.kv_cache.result",
    "compress_cache": "eckart.lm.kv_cache.compressing",
    "finetune": "eckart.lm.finetuning",
    "load_cache": "eckart.lm.kv_cache.result",
    "train": "eckart.lm.training",
}

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
    "cached_bytes",
    "calibration_data",
    "checkpoint_path",
    "compress",
    "compress_cache",
    "densify",
    "evaluate",
    "finetune",
    "from_scratch",
    "learn_tokenizer",
    "load",
    "load_cache",
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
