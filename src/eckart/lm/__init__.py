"""Language models and text through transformers: load, look, read text, perplexity, fine-tune adapters, log spectra.

`finetune` is imported when it is first used: transformers' Trainer takes seconds.
"""

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
from eckart.lm.text import batches, read_text

if TYPE_CHECKING:
    from eckart.lm.finetuning import finetune

__all__ = [
    "ALIASES",
    "AdapterCallback",
    "Finetuned",
    "LanguageModel",
    "Perplexity",
    "SpectraCallback",
    "TrainingData",
    "batches",
    "cache_folder",
    "checkpoint_path",
    "finetune",
    "load",
    "look",
    "next_token_loss",
    "perplexity",
    "read_text",
    "training_data",
]


def __getattr__(name: str) -> Any:
    if name != "finetune":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    from eckart.lm.finetuning import finetune

    return finetune
