"""Language models and text through transformers: load, look, read text, batches, perplexity, log spectra."""

from eckart.lm.callback import SpectraCallback
from eckart.lm.gguf import cache_folder
from eckart.lm.load import LanguageModel, load
from eckart.lm.look import look, next_token_loss
from eckart.lm.perplexity import Perplexity, perplexity
from eckart.lm.resolve import ALIASES, checkpoint_path
from eckart.lm.text import batches, read_text

__all__ = [
    "ALIASES",
    "LanguageModel",
    "Perplexity",
    "SpectraCallback",
    "batches",
    "cache_folder",
    "checkpoint_path",
    "load",
    "look",
    "next_token_loss",
    "perplexity",
    "read_text",
]
