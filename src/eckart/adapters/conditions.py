"""What must hold for a layer to be computed by the fused step, apart from what its adapters are.

Paper: none.
"""

import torch
from torch import Tensor, nn

from eckart.nn.quantised import is_quantised

PLAIN = (Tensor, nn.Parameter)  # neither sharded nor otherwise special


def is_eager(x: Tensor) -> bool:
    """Whether operations on x run as they are called, with autograd's own graph or none."""
    return (
        not torch.compiler.is_compiling()  # first: the rest is not for the compiler's eyes
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and type(x) in PLAIN
        and not x.is_inference()
    )


def why_alone(layer: nn.Module) -> str:
    """Why a linear layer is not fused with its siblings; empty where it is."""
    W = layer._parameters.get("weight")
    if is_quantised(layer):
        return f"its weight is quantised ({type(W).__name__})"
    if W is None:
        return "its weight is computed at each use"
    return "" if type(W) is nn.Parameter and W.is_floating_point() else f"its weight is a {type(W).__name__}"


def is_watched(layer: nn.Module) -> bool:
    """Whether hooks on the layer wait for it to be called."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
