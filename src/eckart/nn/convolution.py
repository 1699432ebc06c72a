"""What the compressed convolutions have in common: the geometry of the dense one, and the two steps of a product.

A convolution W (m, in·k…) = B A of rank r is a convolution with r filters, the rows of A, followed by a combination of
their r channels at each position, B. The cost falls from m·n to r(m+n) multiplications for each output position, n =
in·k…; the padding is that of the dense layer, before both.

Paper: none; the split is that of Zhang et al. (arXiv 1505.06798).
"""

from abc import abstractmethod
from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eckart.nn.compressed_layer import CompressedLayer
from eckart.nn.compressed_linear import own, own_bias
from eckart.nn.specs import flag, whole, wrong

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONVOLVE = (F.conv1d, F.conv2d, F.conv3d)
_PER_DIMENSION = ("kernel_size", "stride", "dilation")
_GEOMETRY = ("in_channels", "out_channels", *_PER_DIMENSION, "padding", "padding_mode")
_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class CompressedConv(CompressedLayer):
    """A convolution whose matrix is a product of rank r.

    Args:
        convolution: Conv1d, Conv2d or Conv3d without groups, whose stride, padding and the like are taken.
        rank: r.
        bias: (m,) or None, copied.

    Raises:
        TypeError: it is no such convolution.
    """

    seen_as: ClassVar[str] = "conv"
    groups = 1
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: str | tuple[int, ...]
    padding_mode: str
    _reversed_padding_repeated_twice: list[int]  # what torch.nn.functional.pad takes

    def __init__(self, convolution: nn.Module, rank: int, bias: Tensor | None) -> None:
        require_convolution(convolution)
        super().__init__()
        for name in (*_GEOMETRY, "_reversed_padding_repeated_twice"):
            setattr(self, name, getattr(convolution, name))
        self.rank = rank
        self.in_features, self.out_features = self.in_channels * prod(self.kernel_size), self.out_channels
        self.bias = own_bias(bias, self.out_features)

    @classmethod
    @abstractmethod
    def empty(
        cls,
        convolution: nn.Module,
        rank: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """A layer for the place of a convolution, whose numbers are yet to be loaded (`load_state_dict`)."""

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """See `CompressedLayer`."""
        return (*_GEOMETRY, "rank", "bias")

    @classmethod
    def made(cls, spec: Mapping[str, Any], **place: Any) -> Self:
        """See `CompressedLayer`."""
        return cls.empty(_convolution(spec), whole(spec, "rank"), **place)

    @property
    @abstractmethod
    def weight(self) -> Tensor:  # (m, n)
        """The dense product, as `nn.matrices` sees a convolution: (out, in · kernel)."""

    def spec(self) -> dict[str, Any]:
        """See `CompressedLayer`."""
        told = {name: getattr(self, name) for name in _GEOMETRY}
        lists = {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()}
        return {"kind": self.kind, **lists, "rank": self.rank, "bias": self.bias is not None}

    def to_dense(self) -> nn.Module:
        """The dense convolution of the same map."""
        W = self.weight
        dense = _convolution(self.spec(), W.dtype)
        dense.weight = own(W.reshape(dense.weight.shape))
        dense.bias = None if self.bias is None else own(self.bias)
        return dense

    def filtered(self, x: Tensor, A: Tensor) -> Tensor:  # ([B,] in, L...), (r, n) -> ([B,] r, L'...)
        """The convolution with r filters; torch has none with no filters, so one of zeros stands for them."""
        A = A if len(A) else A.new_zeros(1, self.in_features)
        return self._conv_forward(x, A.reshape(-1, self.in_channels, *self.kernel_size), None)

    def combined(self, z: Tensor, B: Tensor, bias: Tensor | None) -> Tensor:  # ([B,] r, L'...), (m, r), (m,)
        """Each output channel as a combination of the filters' channels."""
        B = B if B.shape[1] else B.new_zeros(len(B), 1)
        return _CONVOLVE[self.dimensions - 1](z, B.reshape(*B.shape, *(1,) * self.dimensions), bias)

    @property
    def dimensions(self) -> int:
        """How many spatial dimensions its input has."""
        return len(self.kernel_size)

    def padded(self, x: Tensor) -> tuple[Tensor, str | tuple[int, ...]]:
        """The input as it is padded before the product, and the zeros that the product has still to add."""
        if self.padding_mode == "zeros":
            return x, self.padding
        return F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), (0,) * self.dimensions

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """As torch's convolutions have it: with the geometry of this layer and any filters."""
        x, padding = self.padded(x)
        return _CONVOLVE[self.dimensions - 1](x, weight, bias, self.stride, padding, self.dilation)

    def extra_repr(self) -> str:
        shown = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        unusual = {
            "padding": self.padding not in ((0,) * self.dimensions, "valid"),
            "dilation": set(self.dilation) != {1},
            "padding_mode": self.padding_mode != "zeros",
        }
        shown += [f"{name}={getattr(self, name)}" for name, is_unusual in unusual.items() if is_unusual]
        return ", ".join([*shown, f"rank={self.rank}", f"bias={self.bias is not None}"])


def require_convolution(module: nn.Module) -> None:
    """Raise TypeError unless a module is a Conv1d, Conv2d or Conv3d without groups, or one that is compressed."""
    if not isinstance(module, (*CONVOLUTIONS, CompressedConv)):
        raise TypeError(f"a {type(module).__name__} cannot be factored here; give a Conv1d, Conv2d or Conv3d")
    if module.groups != 1:
        raise TypeError(
            f"a convolution with groups={module.groups} cannot be factored: each group is a small matrix of its own; "
            "leave it dense"
        )


def _convolution(spec: Mapping[str, Any], dtype: torch.dtype | None = None) -> Any:
    """The dense convolution that a spec tells of, on the device "meta"."""
    sides = {name: _sides(spec, name) for name in _PER_DIMENSION}
    dims = len(sides["kernel_size"])
    if any(len(side) != dims for side in sides.values()):
        raise wrong(spec, "kernel_size", "one number for each dimension, as many as stride and dilation have")
    padding, mode = spec["padding"], spec["padding_mode"]
    if mode not in _PADDING_MODES:
        raise wrong(spec, "padding_mode", f"one of {', '.join(_PADDING_MODES)}")
    if isinstance(padding, list | tuple):
        padding = _sides(spec, "padding", least=0)
    if padding not in ("same", "valid") and not (isinstance(padding, tuple) and len(padding) == dims):
        raise wrong(spec, "padding", f'"same", "valid" or {dims} whole numbers')
    channels = whole(spec, "in_channels", 1), whole(spec, "out_channels", 1)
    options = {**sides, "padding": padding, "padding_mode": mode, "bias": flag(spec, "bias")}
    return CONVOLUTIONS[dims - 1](*channels, **options, dtype=dtype, device="meta")


def _sides(spec: Mapping[str, Any], key: str, least: int = 1) -> tuple[int, ...]:
    """One to three whole numbers of a spec."""
    value = spec[key]
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= 3:
        raise wrong(spec, key, "a list of one to three whole numbers")
    if any(type(side) is not int or side < least for side in value):
        raise wrong(spec, key, f"whole numbers of at least {least}")
    return tuple(value)
