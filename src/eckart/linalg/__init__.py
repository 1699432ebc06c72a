"""Low-rank linear algebra: tensors in, tensors out, torch only.

Matrices are (..., m, n) with W (m, n) = (out, in) as in `nn.Linear`. Any float dtype comes in, the arithmetic is float32
(float64 for float64 input), and the same dtype comes out. Non-finite input raises ValueError.
"""

__all__: list[str] = []
