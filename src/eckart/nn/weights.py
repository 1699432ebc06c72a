"""Which of a module's own parameters are matrices, and how each is laid out; by duck typing."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from eckart.nn.convolution import CONVOLUTIONS

_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class Layout:
    """How one parameter holds a matrix (m, n), or a stack of them."""

    parameter: str
    kind: str
    shape: tuple[int, int]
    stack: int = 1
    transposed: bool = False


def layouts(module: nn.Module, path: str = "") -> Iterator[Layout]:
    """Yield the layout of each matrix that the module itself owns (not its children).

    Args:
        module: any module.
        path: its dotted path in the model; "experts" in it marks 3-D parameters as stacks.

    Example:
        >>> [(layout.kind, layout.shape) for layout in layouts(nn.Linear(6, 4))]
        [('linear', (4, 6))]
    """
    if "parametrizations" in path.split("."):
        return  # it makes a weight of the module that it belongs to, which has the matrix
    if (kind := seen_as(module)) is not None:
        yield Layout("weight", kind, (module.out_features, module.in_features))  # type: ignore[arg-type]
        return
    if "weight" in _owned(module):
        layout = _weight_layout(module, module.weight)
        if layout is not None:
            yield layout
    if isinstance(module, nn.MultiheadAttention):
        for name in _ATTENTION_WEIGHTS:
            if isinstance(W := getattr(module, name, None), Tensor):
                yield Layout(name, "attention", _pair(W))
    if _holds_experts(module, path):
        stacks = {name: W for name, W in _tensors(module) if W.ndim == 3 and not name.endswith("bias")}
        transposed = _experts_transposed(module, stacks)
        for name, W in stacks.items():
            yield Layout(name, "experts", _pair(W.mT if transposed else W), len(W), transposed)


def seen_as(module: nn.Module) -> str | None:
    """The kind of the one matrix that a compressed layer stands for, as its class says; None for other modules.

    Example:
        >>> from eckart.nn import FactoredLinear
        >>> seen_as(FactoredLinear.empty(3, 3, rank=1)), seen_as(nn.Linear(3, 3))
        ('linear', None)
    """
    return getattr(type(module), "seen_as", None)


def _owned(module: nn.Module) -> list[str]:
    """The names of the module's own parameters, parametrized ones included."""
    names = [name for name, parameter in module._parameters.items() if parameter is not None]
    parametrized = getattr(module, "parametrizations", None)
    return names + (list(parametrized) if isinstance(parametrized, nn.ModuleDict) else [])


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The module's own parameters that are real floating-point tensors."""
    owned = [(name, getattr(module, name)) for name in _owned(module)]
    return [(name, W) for name, W in owned if isinstance(W, Tensor) and W.is_floating_point()]


def _weight_layout(module: nn.Module, W: object) -> Layout | None:
    """The layout of an attribute `weight`, or None for a layer whose matrix is not known."""
    if not isinstance(W, Tensor) or not W.is_floating_point():
        return None
    if isinstance(module, CONVOLUTIONS):
        return Layout("weight", "conv", (len(W) // module.groups, prod(W.shape[1:])), module.groups)
    if W.ndim != 2:
        return None
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return Layout("weight", "embedding", _pair(W))
    if tuple(W.shape) == (getattr(module, "out_features", None), getattr(module, "in_features", None)):
        return Layout("weight", "linear", _pair(W))
    if W.shape[1] == getattr(module, "nf", None):
        return Layout("weight", "conv1d", _pair(W.T), transposed=True)
    return None


def _holds_experts(module: nn.Module, path: str) -> bool:
    if isinstance(module, CONVOLUTIONS):
        return False
    return "expert" in type(module).__name__.lower() or "experts" in path.split(".")


def _experts_transposed(module: nn.Module, stacks: Mapping[str, Tensor]) -> bool:
    """Whether stacks are stored (E, in, out): as the module says, else by which side of one is the model's width."""
    if isinstance(said := getattr(module, "is_transposed", None), bool):
        return said
    width = getattr(module, "hidden_size", getattr(module, "hidden_dim", None))
    for name, W in stacks.items():
        _, rows, columns = W.shape
        if rows != columns and width in (rows, columns):
            return width == (columns if "down" in name else rows)
    return False


def _pair(W: Tensor) -> tuple[int, int]:
    return W.shape[-2], W.shape[-1]
