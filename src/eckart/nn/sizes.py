"""What a model takes in memory.

Paper: none.
"""

from torch import nn


def model_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, each once, at their dtypes.

    Example:
        >>> model_bytes(nn.BatchNorm1d(4))  # four vectors of float32, and an int64 counter
        72
    """
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())
