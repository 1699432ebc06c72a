"""What keeps a compressed transformers model from being saved as a dense one.

Its `save_pretrained` would write the factors, and a config that does not tell of them: a folder that loads with random
weights in their places. `import eckart.lm` teaches transformers to write it right; until then, saving is refused, by
what transformers itself asks of a quantised model. So nothing of transformers is imported here.
Paper: none.
"""

from types import SimpleNamespace

from torch import nn

TOLD = "eckart, which needs `import eckart.lm` before it can be saved,"  # transformers puts it in its own message


class Unregistered:
    """Stands as `hf_quantizer` on a model: says that it can be trained and compiled, and not be saved."""

    is_trainable = is_qat_trainable = is_compileable = True
    quantization_config = SimpleNamespace(quant_method=TOLD)


def guard(model: nn.Module) -> None:
    """Have the transformers models in a compressed model refuse `save_pretrained` until eckart.lm is imported."""
    for module in model.modules():
        if callable(getattr(type(module), "save_pretrained", None)) and not hasattr(module, "hf_quantizer"):
            module.hf_quantizer = Unregistered()  # type: ignore[assignment]


def unguard(model: nn.Module) -> None:
    """Take that back: nothing compressed is left in the model."""
    for module in model.modules():
        if isinstance(getattr(module, "hf_quantizer", None), Unregistered):
            del module.hf_quantizer
