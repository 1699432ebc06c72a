"""What plain quantisation gives for its bytes, to compare a compressed model with.

Paper: none; the codes are those of `linalg.quantize`, to nearest, with a scale for each 64 entries.
"""

from copy import deepcopy

from transformers import PreTrainedModel

from eckart.nn import matrices, replace
from eckart.nn.compressed import is_compressed
from eckart.nn.quantized_layer import QuantizedLinear


def quantized(model: PreTrainedModel, bits: int = 8) -> PreTrainedModel:
    """A copy of a model whose linear layers hold their weights in few bits, its head and embeddings excepted.

    Each product restores the weight first (see `nn.QuantizedLinear`): bytes are saved, time is not.

    Args:
        model: The dense model; compressed layers in it stay as they are.
        bits: 8 or 4.

    Returns:
        The copy.

    Raises:
        ValueError: bits is neither.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> copy = quantized(LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)))
        >>> copy.model.layers[0].mlp.up_proj.weight_bytes, type(copy.lm_head).__name__  # 4 bytes for each 64 entries
        (4352, 'Linear')
    """
    copy = deepcopy(model)
    head = copy.get_output_embeddings()
    for matrix in [each for each in matrices(copy) if each.kind in ("linear", "conv1d")]:
        if matrix.module is not head and not matrix.tied and not is_compressed(matrix.module):
            replace(copy, matrix.name, QuantizedLinear.from_linear(matrix.module, bits))
    return copy
