"""Language models and text through transformers: load, look, read text, perplexity, fine-tune, train, log spectra.

`finetune` and `train` are imported when they are first used: transformers' Trainer takes seconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

from eckart.lm.adapter_callback import AdapterCallback
from eckart.lm.callback import SpectraCallback
from eckart.lm.data import TrainingData, training_data
from eckart.lm.finetuned import Finetuned
from eckart.lm.gguf import cache_folder
from eckart.lm.load import LanguageModel, load
from eckart.lm.look import look, next_token_loss
from eckart.lm.perplexity import Perplexity, perplexity
from eckart.lm.resolve import ALIASES, checkpoint_path
from eckart.lm.scratch import from_scratch, learn_tokenizer
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
    "Finetuned",
    "LanguageModel",
    "Perplexity",
    "SpectraCallback",
    "TelemetryCallback",
    "Trained",
    "TrainingData",
    "batches",
    "cache_folder",
    "checkpoint_path",
    "finetune",
    "from_scratch",
    "learn_tokenizer",
    "load",
    "look",
    "next_token_loss",
    "perplexity",
    "read_text",
    "train",
    "training_data",
]


def __getattr__(name: str) -> Any:
    if name not in LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(LATE[name]), name)
