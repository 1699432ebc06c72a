"""A linear layer that holds W = B A, B (m, r) and A (r, n), instead of a dense (m, n) matrix.

r(m+n) numbers, and as many multiplications for each token: fewer than the dense layer's mn when r < mn/(m+n).
A plain module: autograd, deepcopy, state_dict, any float dtype and torch.compile work as with `nn.Linear`.
Its `weight` is the dense product, formed anew at each read, for callers that only look at it.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eckart.linalg.svd import truncated_svd
from eckart.nn.compressed_linear import CompressedLinear, dense_of, own, own_bias


class FactoredLinear(CompressedLinear):
    """y = B(A x) + b.

    Args:
        B: (m, r), copied.
        A: (r, n), copied; same dtype and device.
        bias: (m,) or None, copied.

    Raises:
        ValueError: the shapes do not chain.

    Example:
        >>> layer = FactoredLinear(torch.ones(4, 1), torch.tensor([[1.0, 2.0, 3.0]]))
        >>> layer(torch.ones(3)).tolist(), layer.weight_bytes
        ([6.0, 6.0, 6.0, 6.0], 28)
    """

    kind: ClassVar[str] = "factored"
    sizes: ClassVar[tuple[str, ...]] = ("rank",)

    def __init__(
        self,
        B: Tensor,  # (m, r)
        A: Tensor,  # (r, n)
        bias: Tensor | None = None,  # (m,)
    ) -> None:
        super().__init__()
        if B.ndim != 2 or A.ndim != 2 or B.shape[1] != A.shape[0]:
            raise ValueError(f"B (m, r) and A (r, n) must chain, got shapes {tuple(B.shape)} and {tuple(A.shape)}")
        self.out_features, self.rank = B.shape
        self.in_features = A.shape[1]
        self.B, self.A = own(B), own(A)
        self.bias = own_bias(bias, self.out_features)

    @classmethod
    def empty(
        cls,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "FactoredLinear":
        """A layer whose numbers are yet to be loaded (`load_state_dict`); on the device "meta" it takes no memory.

        Example:
            >>> layer = FactoredLinear.empty(3, 4, rank=2, dtype=torch.bfloat16, device="meta")
            >>> {name: tuple(value.shape) for name, value in layer.state_dict().items()}
            {'B': (4, 2), 'A': (2, 3), 'bias': (4,)}
        """
        B = torch.empty(out_features, rank, dtype=dtype, device=device)
        return cls(B, B.new_empty(rank, in_features), B.new_empty(out_features) if bias else None)

    @classmethod
    def from_linear(cls, linear: nn.Module, rank: int) -> "FactoredLinear":
        """The best approximation of a dense layer by this rank: truncated SVD, its values split evenly between factors.

        Args:
            linear: an `nn.Linear`, or a transformers Conv1D.
            rank: from 1 to min(m, n).

        Raises:
            TypeError: the layer is of another kind.
            ValueError: the rank does not fit.

        Example:
            >>> linear = nn.Linear(6, 5)
            >>> x = torch.randn(2, 6)
            >>> torch.allclose(FactoredLinear.from_linear(linear, rank=5)(x), linear(x), atol=1e-5)
            True
        """
        W, bias = dense_of(linear)
        B, A = best_product(W, rank)
        return cls(B.to(W.dtype), A.to(W.dtype), bias)

    @property
    def weight(self) -> Tensor:  # (m, n)
        """The dense product B A."""
        return self.B @ self.A

    def forward(self, x: Tensor) -> Tensor:  # (..., n) -> (..., m)
        """Two products, first with A, then with B."""
        return F.linear(F.linear(x, self.A), self.B, self.bias)


def best_product(W: Tensor, rank: int) -> tuple[Tensor, Tensor]:  # (m, n) -> (m, r), (r, n)
    """The best B A of this rank, balanced, in float32 or wider: factors of half precision are rounded once, last."""
    U, S, Vh = truncated_svd(W if W.dtype == torch.float64 else W.float(), rank)
    root = S.sqrt()
    return U * root, root.unsqueeze(-1) * Vh
