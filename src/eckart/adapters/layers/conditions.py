"""What must hold for a layer to be computed by the fused step, apart from what its adapters are.

Paper: none.
"""

from typing import Any

import torch
from torch import Tensor, nn

from eckart.nn.foreign_quantized import is_quantized

PLAIN = (Tensor, nn.Parameter)  # neither sharded nor otherwise special
_CONV1D = "transformers.pytorch_utils.Conv1D.forward"


def is_eager(x: Tensor) -> bool:
    """Whether operations on x run as they are called, with autograd's own graph or none."""
    return (
        not torch.compiler.is_compiling()  # first: the rest is not for the compiler's eyes
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and type(x) in PLAIN
        and not x.is_inference()
    )


def in_backward() -> bool:
    """Whether autograd is going backward, as where a checkpointed block is computed again."""
    return torch._C._current_graph_task_id() != -1


def why_alone(layer: nn.Module) -> str:
    """Why a linear layer is not fused with its siblings; empty where it is."""
    W = layer._parameters.get("weight")
    if is_quantized(layer):
        return f"its weight is quantised ({type(W).__name__})"
    if W is None:
        return "its weight is computed at each use"
    if type(W) is not nn.Parameter or not W.is_floating_point():
        return f"its weight is a {type(W).__name__}"
    forward = type(layer).forward
    if "forward" in vars(layer) or (forward is not nn.Linear.forward and _path(forward) != _CONV1D):
        return f"it does more than x Wᵀ + b (the forward of {type(layer).__name__} is another)"
    return ""


def is_watched(layer: nn.Module) -> bool:
    """Whether hooks on the layer, or a forward put in the place of its own (as offloading does), wait for its call."""
    return "forward" in layer.__dict__ or bool(
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    )


def _path(function: Any) -> str:
    return f"{function.__module__}.{function.__qualname__}"
