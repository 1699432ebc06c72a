"""What the compressed linear layers have in common: what they say of themselves, and the way back to a dense one.

A kind of layer names its `sizes`, the numbers that an empty one is made of besides in_features and out_features; they
are attributes of the layer, arguments of `empty`, and entries of its spec. All else that `nn.compressed` asks follows
here. As `nn.convolution` is for convolutions.

Paper: none.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from eckart.nn.compressed_layer import CompressedLayer
from eckart.nn.specs import flag, whole


class CompressedLinear(CompressedLayer):
    """A linear layer that holds its matrix (m, n) in another form; a plain module, as `nn.Linear` is."""

    seen_as: ClassVar[str] = "linear"
    sizes: ClassVar[tuple[str, ...]]
    empty: ClassVar[Callable[..., Any]]  # (in_features, out_features, *sizes, bias, dtype, device)
    in_features: int
    out_features: int
    bias: Any

    @property
    @abstractmethod
    def weight(self) -> Tensor:  # (m, n)
        """The dense matrix, formed anew at each read, for callers that only look at it."""

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """See `CompressedLayer`."""
        return ("in_features", "out_features", *cls.sizes, "bias")

    @classmethod
    def made(cls, spec: Mapping[str, Any], **place: Any) -> Self:
        """See `CompressedLayer`."""
        n, m = whole(spec, "in_features", 1), whole(spec, "out_features", 1)
        return cls.empty(n, m, **cls.sizes_in(spec, m, n), bias=flag(spec, "bias"), **place)

    @classmethod
    def sizes_in(cls, spec: Mapping[str, Any], m: int, n: int) -> dict[str, Any]:
        """The sizes of a spec, checked to fit an (m, n) matrix."""
        return {name: whole(spec, name) for name in cls.sizes}

    def own_sizes(self) -> dict[str, Any]:
        """The sizes of this layer."""
        return {name: getattr(self, name) for name in self.sizes}

    def spec(self) -> dict[str, Any]:
        """See `CompressedLayer`."""
        sizes = {"in_features": self.in_features, "out_features": self.out_features, **self.own_sizes()}
        return {"kind": self.kind, **sizes, "bias": self.bias is not None}

    def to_dense(self) -> nn.Linear:
        """The dense layer of the same map."""
        return to_linear(self.weight, self.bias)

    def extra_repr(self) -> str:
        told = {name: value for name, value in self.spec().items() if name != "kind" and not isinstance(value, dict)}
        return ", ".join(f"{name}={value}" for name, value in told.items())


def picked(x: Tensor, positions: Tensor) -> Tensor:  # (..., n), (k,) -> (..., k)
    """The values at some positions of the last dimension: a `gather`, on CPUs 2.5 × as fast as `index_select` there.

    Example:
        >>> picked(torch.tensor([[3.0, 4.0, 5.0]]), torch.tensor([2, 0]))
        tensor([[5., 3.]])
    """
    return x.gather(-1, positions.long().expand(*x.shape[:-1], -1))


def own(W: Tensor) -> nn.Parameter:
    """A contiguous parameter with storage of its own: a slice of a larger matrix would keep all of that alive."""
    return nn.Parameter(W.detach().clone(memory_format=torch.contiguous_format))


def own_bias(bias: Tensor | None, m: int) -> nn.Parameter | None:
    """A bias with storage of its own, checked to fit m outputs."""
    if bias is not None and bias.shape != (m,):
        raise ValueError(f"bias must have shape ({m},) to fit the outputs, got {tuple(bias.shape)}")
    return None if bias is None else own(bias)


def dense_of(linear: nn.Module) -> tuple[Tensor, Tensor | None]:  # (m, n), (m,)
    """The weight as (out, in) and the bias of a Linear or a transformers Conv1D."""
    weight, bias = getattr(linear, "weight", None), getattr(linear, "bias", None)
    if isinstance(linear, nn.Linear):
        return linear.weight.detach(), bias
    if isinstance(weight, Tensor) and weight.ndim == 2 and weight.shape[1] == getattr(linear, "nf", None):
        return weight.detach().T, bias
    raise TypeError(f"a {type(linear).__name__} cannot be factored; give an nn.Linear or a transformers Conv1D")


def to_linear(W: Tensor, bias: Tensor | None) -> nn.Linear:  # (m, n), (m,)
    """A dense layer that holds copies of a weight and a bias."""
    m, n = W.shape
    linear = nn.Linear(n, m, bias=bias is not None, device="meta", dtype=W.dtype)
    linear.weight = own(W)
    if bias is not None:
        linear.bias = own(bias)
    return linear
