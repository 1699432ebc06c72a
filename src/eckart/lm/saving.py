"""Language models in folders: saved whole or not at all, and made dense for other tools.

Paper: none.
"""

import os

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

import eckart.lm.quantizer  # noqa: F401  (transformers learns to write compressed models)
from eckart.compression import densify as densify_model
from eckart.lm.load import load
from eckart.lm.pretrained import MARK, write_pretrained
from eckart.lm.whole_models import stored_dtype
from eckart.nn import Progress
from eckart.nn.files import atomic_directory


def save(
    model: PreTrainedModel, tokenizer: Tokenizer | None, folder: str | os.PathLike[str], *, force: bool = False
) -> None:
    """Save a model and its tokenizer as `save_pretrained` does, the whole folder or nothing.

    The files are written beside the folder, which then takes its name. What is compressed is written as it is: the
    folder is loaded by `from_pretrained` after `import eckart.lm`, by `eckart.lm.load`, and by `eckart.load(into=…)`.

    Args:
        model: Dense or compressed; adapters must be merged.
        tokenizer: None for none.
        folder: The folder to make.
        force: Replace a model that is already there.

    Raises:
        FileExistsError: The folder is there and `force` is false.
        ValueError: The model is compressed and has adapters.

    Example:
        >>> import tempfile
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes))
        >>> folder = tempfile.mkdtemp() + "/tiny"
        >>> save(model, None, folder)
        >>> type(LlamaForCausalLM.from_pretrained(folder)).__name__
        'LlamaForCausalLM'
    """
    with atomic_directory(folder, force=force, mark=MARK) as beside:
        write_pretrained(model, tokenizer, beside)


def densify(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a compressed model on disk as a dense one, for tools that know no compressed layers.

    Args:
        model: What `load` takes.
        out: Folder for the dense model and its tokenizer.
        force: Replace a model that is already there.
        progress: Called as progress(done, total, label) while a GGUF file is converted.

    Raises:
        FileExistsError: `out` holds something and `force` is false.
        ValueError: The model is dense already.

    Example:
        >>> import tempfile, eckart
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> model = eckart.compress(LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)), method="svd", keep=0.5).model
        >>> folder = tempfile.mkdtemp()
        >>> save(model, None, f"{folder}/small")
        >>> densify(f"{folder}/small", f"{folder}/dense")
        >>> type(LlamaForCausalLM.from_pretrained(f"{folder}/dense").model.layers[0].mlp.up_proj).__name__
        'Linear'
    """
    with atomic_directory(out, force=force, mark=MARK) as beside:  # first, so that nothing is computed in vain
        loaded = load(model, dtype=stored_dtype(model), progress=progress)
        densify_model(loaded.model)
        write_pretrained(loaded.model, loaded.tokenizer, beside)
