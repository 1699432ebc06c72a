"""A linear layer whose weight is kept in 8 or 4 bits: codes and scales of `linalg.quantize`, in blocks along the rows.

mn·bits/8 bytes, and a scale in the layer's dtype for each block of `block` entries. The forward pass restores the
weight in float32, rounds it to the dtype of what it reads and multiplies with it: fewer bytes are held, no product is
saved, and restoring costs O(mn) each time. Codes have no gradient; inputs and bias have. `to(bfloat16)` rounds scales.
Paper: scales have the layer's dtype, not float32 always: bfloat16 adds 8% to the squared error of 8 bits, nothing to
that of 4, and halves their bytes.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eckart.linalg.quantize import Quantized, dequantize, quantize
from eckart.nn.compressed_linear import CompressedLinear, dense_of, own_bias
from eckart.nn.specs import whole, wrong

BITS = (8, 4)


class QuantizedLinear(CompressedLinear):
    """y = Q x + b, Q held as small integers and their scales.

    Args:
        codes: What `linalg.quantize` returns of a weight (m, n).
        bias: (m,) or None, copied.
        dtype: Of the scales, and so of `weight`; None keeps float32.

    Raises:
        ValueError: the codes are not of a matrix, or the bias does not fit.

    Example:
        >>> layer = QuantizedLinear(quantize(torch.tensor([[7.0, -3.2], [0.0, 1.0]]), bits=4))
        >>> layer.weight, layer.weight_bytes
        (tensor([[ 7., -3.],
                [ 0.,  1.]]), 6)
    """

    kind: ClassVar[str] = "quantized"
    sizes: ClassVar[tuple[str, ...]] = ("bits", "block")
    codes: Tensor  # (mn,) int8, or (⌈mn/2⌉,) uint8 for 4 bits
    scales: Tensor  # (blocks,)

    def __init__(
        self,
        codes: Quantized,
        bias: Tensor | None = None,  # (m,)
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if len(codes.shape) != 2:
            raise ValueError(f"codes must be those of a matrix (m, n), got shape {codes.shape}; quantize a 2-D weight")
        self.out_features, self.in_features = codes.shape
        self.bits, self.block = codes.bits, codes.block
        self.register_buffer("codes", codes.codes.detach().clone())
        self.register_buffer("scales", codes.scales.detach().to(dtype or torch.float32, copy=True))
        self.bias = own_bias(bias, self.out_features)

    @classmethod
    def empty(
        cls,
        in_features: int,
        out_features: int,
        bits: int = 8,
        block: int = 64,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "QuantizedLinear":
        """A layer whose numbers are yet to be loaded (`load_state_dict`); on the device "meta" it takes no memory.

        Example:
            >>> layer = QuantizedLinear.empty(6, 5, bits=4, block=16, dtype=torch.bfloat16, device="meta")
            >>> {name: tuple(value.shape) for name, value in layer.state_dict().items()}
            {'bias': (5,), 'codes': (15,), 'scales': (2,)}
        """
        m, n = out_features, in_features
        scales = torch.zeros(-(-m * n // block), dtype=dtype, device=device)
        codes = scales.new_zeros(-(-m * n * bits // 8), dtype=torch.int8 if bits == 8 else torch.uint8)
        blank = Quantized(codes, scales, (m, n), bits, block)
        return cls(blank, scales.new_zeros(m) if bias else None, scales.dtype)

    @classmethod
    def sizes_in(cls, spec: Mapping[str, Any], m: int, n: int) -> dict[str, Any]:
        if whole(spec, "bits") not in BITS:
            raise wrong(spec, "bits", "8 or 4")
        return {name: whole(spec, name, 1) for name in cls.sizes}

    @classmethod
    def from_linear(cls, linear: nn.Module, bits: int = 8, block: int = 64) -> "QuantizedLinear":
        """The nearest codes of a dense layer, an `nn.Linear` or a transformers Conv1D.

        Args:
            linear: the dense layer.
            bits: 8 or 4.
            block: entries that share a scale.

        Raises:
            TypeError: the layer is of another kind.
            ValueError: bits or block does not fit, or the weight is not finite.

        Example:
            >>> linear = nn.Linear(64, 32)
            >>> x = torch.ones(64)
            >>> torch.allclose(QuantizedLinear.from_linear(linear)(x), linear(x), atol=0.05)
            True
        """
        W, bias = dense_of(linear)
        return cls(quantize(W, bits, block=block), bias, W.dtype)

    @property
    def weight(self) -> Tensor:  # (m, n)
        """The matrix that the codes stand for."""
        return self._restored(self.scales.dtype)

    def forward(self, x: Tensor) -> Tensor:  # (..., n) -> (..., m)
        """The product with the restored weight, in the dtype of x."""
        return F.linear(x, self._restored(x.dtype), self.bias)

    def _restored(self, dtype: torch.dtype) -> Tensor:  # (m, n)
        shape = (self.out_features, self.in_features)
        return dequantize(Quantized(self.codes, self.scales.float(), shape, self.bits, self.block), dtype)
