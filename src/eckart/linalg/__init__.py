"""Low-rank linear algebra: tensors in, tensors out, torch only.

Matrices are (..., m, n) with W (m, n) = (out, in) as in `nn.Linear`. Any float dtype comes in, the arithmetic is
float32 (float64 for float64 input), and the same dtype comes out. Non-finite input raises ValueError.
"""

from eckart.linalg.allocation import allocate, rank_cost
from eckart.linalg.approximation import approximation_error, weighted_approximation, weighted_singular_values
from eckart.linalg.covariance import anchored_target, shrink
from eckart.linalg.dimension import intrinsic_dimension
from eckart.linalg.factored import balance, product_sum, product_svd, product_truncate
from eckart.linalg.factored_norms import product_distance, product_inner, product_norm
from eckart.linalg.noise import count_outliers, marchenko_pastur_edge, marchenko_pastur_median, outlier_threshold
from eckart.linalg.parallel import map_side_by_side
from eckart.linalg.pivoting import pivot_factors, pivot_rows
from eckart.linalg.powerlaw import PowerLaw, power_law
from eckart.linalg.quantize import Quantized, dequantize, quantize, stochastic_round
from eckart.linalg.spectrum import (
    effective_rank,
    energy_rank,
    nuclear_ratio,
    numerical_rank,
    participation_ratio,
    stable_rank,
)
from eckart.linalg.spectrum_bounds import (
    effective_rank_bounds,
    energy_rank_bounds,
    nuclear_ratio_bounds,
    participation_ratio_bounds,
)
from eckart.linalg.svd import singular_values, top_singular_values, truncated_svd

__all__ = [
    "PowerLaw",
    "Quantized",
    "allocate",
    "anchored_target",
    "approximation_error",
    "balance",
    "count_outliers",
    "dequantize",
    "effective_rank",
    "effective_rank_bounds",
    "energy_rank",
    "energy_rank_bounds",
    "intrinsic_dimension",
    "map_side_by_side",
    "marchenko_pastur_edge",
    "marchenko_pastur_median",
    "nuclear_ratio",
    "nuclear_ratio_bounds",
    "numerical_rank",
    "outlier_threshold",
    "participation_ratio",
    "participation_ratio_bounds",
    "pivot_factors",
    "pivot_rows",
    "power_law",
    "product_distance",
    "product_inner",
    "product_norm",
    "product_sum",
    "product_svd",
    "product_truncate",
    "quantize",
    "rank_cost",
    "shrink",
    "singular_values",
    "stable_rank",
    "stochastic_round",
    "top_singular_values",
    "truncated_svd",
    "weighted_approximation",
    "weighted_singular_values",
]
