"""A model and its tokenizer on disk as transformers write them: what every verb that writes a model ends with."""

from pathlib import Path

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

MARK = "config.json"  # by which a folder is known to hold a model


def write_pretrained(model: PreTrainedModel, tokenizer: Tokenizer | None, folder: Path) -> None:
    """Both, by `save_pretrained`; the folder is one that `atomic_directory` gave, so that all of it appears or nothing.

    Example:
        >>> import tempfile
        >>> from transformers import BertConfig, BertModel
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_pretrained(BertModel(BertConfig(num_hidden_layers=1, vocab_size=8)), None, folder)
        >>> (folder / MARK).is_file()
        True
    """
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
