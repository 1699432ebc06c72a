"""How a product B A of rank r is stored and run in a matrix's place.

| storage | numbers | layer |
|---|---|---|
| factors | r(m+n) | `FactoredLinear`, `FactoredConv` |
| pivoted | r(m+n−r), and m int32 of the gather | `PivotedLinear`, `PivotedConv` (PIFA, arXiv 2501.19090) |

"factors" cost more than the dense matrix from r = mn/(m+n) on; "pivoted" holds the same product in no more numbers
than dense, beside the indices.
Paper: PIFA pivots by QR of the product, we by LU of B (see `linalg.pivot_factors`).
"""

from torch import Tensor, nn

from eckart.linalg import pivot_factors, rank_cost
from eckart.nn import FactoredConv, FactoredLinear, Matrix, PivotedConv, PivotedLinear

INDEX_BYTES = 4  # of one int32 of the gather


def stored_bytes(storage: str, rank: int, shape: tuple[int, int], itemsize: int) -> int:
    """The bytes of a product of this rank; of the dense matrix at full rank.

    Example:
        >>> stored_bytes("factors", 2, (8, 8), 4), stored_bytes("pivoted", 2, (8, 8), 4)
        (128, 144)
    """
    numbers = rank_cost(rank, shape, cost=storage) * itemsize
    return numbers + (INDEX_BYTES * shape[0] if storage == "pivoted" and rank < min(shape) else 0)


def stored_layer(
    storage: str,
    matrix: Matrix,
    B: Tensor,  # (m, r)
    A: Tensor,  # (r, n)
    bias: Tensor | None,  # (m,)
) -> nn.Module:
    """The layer that holds B A in the place of a matrix's layer, in the layer's dtype."""
    dtype = matrix.weight().dtype
    bias = None if bias is None else bias.to(dtype)
    if matrix.kind == "conv":
        convolution = FactoredConv if storage == "factors" else PivotedConv
        return convolution.from_product(matrix.module, B.to(dtype), A.to(dtype))
    if storage == "factors":
        return FactoredLinear(B.to(dtype), A.to(dtype), bias)
    index, _, P, C = pivot_factors(B, A)
    return PivotedLinear(P.to(dtype), C.to(dtype), index, bias)
