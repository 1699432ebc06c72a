"""One small layer of every compressed kind, and an input that it takes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from eckart.linalg import quantize
from eckart.nn import (
    FactoredConv,
    FactoredLinear,
    PivotedConv,
    PivotedLinear,
    QuantizedLinear,
    SelectedLinear,
    SparseLinear,
    SumLinear,
)

M, N, RANK = 10, 12, 4  # of the linear kinds
CHANNELS, KERNEL = 6, (3, 2)  # what the convolutions read


def sample(kind: str, bias: bool = True, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    """A layer of a kind, the same numbers each time, and a batch for it."""
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    layer = MAKERS[kind](drawn, drawn(M) if bias else None).to(dtype)
    x = drawn(3, CHANNELS, 7, 6) if kind.endswith("conv") else drawn(2, 5, N)
    return layer, x.to(dtype)


def _product(drawn: Callable[..., Tensor], n: int = N) -> tuple[Tensor, Tensor]:
    return drawn(M, RANK) / 2, drawn(RANK, n) / n**0.5


def _convolution(bias: Tensor | None) -> nn.Conv2d:
    conv = nn.Conv2d(CHANNELS, M, KERNEL, stride=(1, 2), padding=(1, 0), bias=bias is not None, dtype=torch.float64)
    if bias is not None:
        conv.bias = nn.Parameter(bias)
    return conv


def _conv(layer: type[FactoredConv] | type[PivotedConv]) -> Callable[..., nn.Module]:
    return lambda drawn, bias: layer.from_product(_convolution(bias), *_product(drawn, CHANNELS * 6))


def _sparse(drawn: Callable[..., Tensor], bias: Tensor | None) -> SparseLinear:
    S = drawn(M, N)
    return SparseLinear.from_matrix(S * (S.abs() > 1), bias)


MAKERS: dict[str, Callable[..., nn.Module]] = {
    "factored": lambda drawn, bias: FactoredLinear(*_product(drawn), bias),
    "pivoted": lambda drawn, bias: PivotedLinear.from_product(*_product(drawn), bias),
    "factored_conv": _conv(FactoredConv),
    "pivoted_conv": _conv(PivotedConv),
    "selected": lambda drawn, bias: SelectedLinear(
        drawn(4, 5) / 2, N, M, torch.tensor([0, 3, 4, 9]), torch.tensor([11, 1, 2, 5, 8]), bias
    ),
    "quantized": lambda drawn, bias: QuantizedLinear(quantize(drawn(M, N) / 3, 8, block=16), bias, torch.float64),
    "sparse": _sparse,
    "sum": lambda drawn, bias: SumLinear(FactoredLinear(*_product(drawn), bias), _sparse(drawn, None)),
}
