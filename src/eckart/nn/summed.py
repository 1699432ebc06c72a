"""A linear layer that is the sum of two: a low-rank product, and what the product leaves, in few bits or few entries.

    y = first(x) + second(x),    W = B A + Q (arXiv 2402.02446) or B A + S (arXiv 2409.13652)

Paper: none.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from eckart.nn.compressed_linear import CompressedLinear
from eckart.nn.factored import FactoredLinear
from eckart.nn.pivoted import PivotedLinear
from eckart.nn.quantized_layer import QuantizedLinear
from eckart.nn.sparse_layer import SparseLinear
from eckart.nn.specs import whole, wrong

Part = FactoredLinear | PivotedLinear | QuantizedLinear | SparseLinear
PARTS: dict[str, Any] = {part.kind: part for part in (FactoredLinear, PivotedLinear, QuantizedLinear, SparseLinear)}


class SumLinear(CompressedLinear):
    """y = first(x) + second(x).

    Args:
        first: A compressed linear layer, kept as it is; a bias of the sum is its own.
        second: Another of the same sizes, without a bias.

    Raises:
        ValueError: the sizes differ, or the second has a bias.

    Example:
        >>> import torch
        >>> ones = FactoredLinear(torch.ones(2, 1), torch.ones(1, 3))
        >>> layer = SumLinear(ones, SparseLinear.from_matrix(torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 0.0]])))
        >>> layer.weight.tolist(), layer(torch.ones(3)).tolist()
        ([[1.0, 6.0, 1.0], [1.0, 1.0, 1.0]], [8.0, 3.0])
    """

    kind: ClassVar[str] = "sum"
    sizes: ClassVar[tuple[str, ...]] = ("first", "second")

    def __init__(self, first: Part, second: Part) -> None:
        super().__init__()
        self.out_features, self.in_features = first.out_features, first.in_features
        if (second.out_features, second.in_features) != (self.out_features, self.in_features):
            sizes = [f"{part.in_features} to {part.out_features}" for part in (first, second)]
            raise ValueError(f"second must have the sizes of first, got {sizes[1]} beside {sizes[0]}")
        if second.bias is not None:
            raise ValueError("second must have no bias, got one: give it to first")
        self.first, self.second = first, second

    @classmethod
    def made(cls, spec: Mapping[str, Any], **place: Any) -> "SumLinear":
        """See `CompressedLayer`; with both its parts.

        Example:
            >>> parts = FactoredLinear.empty(3, 4, rank=2), QuantizedLinear.empty(3, 4, bits=4, bias=False)
            >>> spec = SumLinear(*parts).spec()
            >>> SumLinear.from_spec(spec).spec() == spec
            True
        """
        parts = []
        for name in cls.sizes:
            inner = spec[name]
            if not isinstance(inner, Mapping) or inner.get("kind") not in PARTS:
                raise wrong(spec, name, f"the spec of a layer of kind {', '.join(PARTS)}")
            parts.append(PARTS[inner["kind"]].from_spec(inner, **place))
        layer = cls(*parts)
        whole(spec, "in_features", layer.in_features, layer.in_features)
        whole(spec, "out_features", layer.out_features, layer.out_features)
        if spec["bias"] is not (layer.bias is not None):
            raise wrong(spec, "bias", "what the first part has")
        return layer

    @property
    def bias(self) -> Tensor | None:  # (m,)
        """The first part's bias."""
        return self.first.bias

    @property
    def weight(self) -> Tensor:  # (m, n)
        """The dense sum."""
        return self.first.weight + self.second.weight

    def forward(self, x: Tensor) -> Tensor:  # (..., n) -> (..., m)
        """Both parts, added."""
        return self.first(x) + self.second(x)

    def own_sizes(self) -> dict[str, Any]:
        return {"first": self.first.spec(), "second": self.second.spec()}
