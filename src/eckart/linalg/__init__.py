"""Low-rank linear algebra: tensors in, tensors out, torch only.

Matrices are (..., m, n) with W (m, n) = (out, in) as in `nn.Linear`. Any float dtype comes in, and the arithmetic is
at least float32 (`working_dtype`; float64 for float64 input, and inside where float32 would lose digits). Factors,
bases and approximations keep the dtype of what they factorise; singular values taken alone, eigenvalues, norms and
errors are float64; statistics of a spectrum have its dtype, but at least float32. Non-finite input raises ValueError.
"""

from eckart.linalg._check import working_dtype
from eckart.linalg._gram import add_gram, symmetrize
from eckart.linalg.allocation import allocate, rank_cost
from eckart.linalg.angles import overlap, principal_angles
from eckart.linalg.approximation import (
    approximation_error,
    weighted_approximation,
    weighted_singular_values,
    weighted_svd,
)
from eckart.linalg.chain import compressed_chain, spectral_start
from eckart.linalg.covariance import anchored_target, psd_eigenvalues, shrink
from eckart.linalg.dimension import intrinsic_dimension
from eckart.linalg.factored import balance, product_sum, product_svd, product_truncate
from eckart.linalg.factored_norms import product_distance, product_inner, product_norm, product_nuclear_norm
from eckart.linalg.invariant import complete, factorization_signal, invariant_subspace, propagate
from eckart.linalg.menus import choose_points
from eckart.linalg.minifloat import from_minifloat, to_minifloat
from eckart.linalg.noise import count_outliers, marchenko_pastur_edge, marchenko_pastur_median, outlier_threshold
from eckart.linalg.norms import k_support_norm, nuclear_norm, schatten_norm, vector_k_support_norm
from eckart.linalg.nystrom import nystrom, nystrom_weight
from eckart.linalg.orthonormal import orthonormalize
from eckart.linalg.parallel import map_side_by_side
from eckart.linalg.pivoting import pivot_factors, pivot_rows
from eckart.linalg.polar import inverse_root
from eckart.linalg.powerlaw import PowerLaw, power_law
from eckart.linalg.proximal import prox_k_support_squared, prox_nuclear, prox_schatten
from eckart.linalg.proximal_vector import prox_power, prox_vector_k_support_squared
from eckart.linalg.quantize import Quantized, dequantize, quantize, stochastic_round
from eckart.linalg.smallest import smallest_svd
from eckart.linalg.solve import solve_gram, solve_sylvester
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
from eckart.linalg.subspace import captured_energy, find_range, refresh
from eckart.linalg.svd import singular_values, top_singular_values, truncated_svd

__all__ = [
    "PowerLaw",
    "Quantized",
    "add_gram",
    "allocate",
    "anchored_target",
    "approximation_error",
    "balance",
    "captured_energy",
    "choose_points",
    "complete",
    "compressed_chain",
    "count_outliers",
    "dequantize",
    "effective_rank",
    "effective_rank_bounds",
    "energy_rank",
    "energy_rank_bounds",
    "factorization_signal",
    "find_range",
    "from_minifloat",
    "intrinsic_dimension",
    "invariant_subspace",
    "inverse_root",
    "k_support_norm",
    "map_side_by_side",
    "marchenko_pastur_edge",
    "marchenko_pastur_median",
    "nuclear_norm",
    "nuclear_ratio",
    "nuclear_ratio_bounds",
    "numerical_rank",
    "nystrom",
    "nystrom_weight",
    "orthonormalize",
    "outlier_threshold",
    "overlap",
    "participation_ratio",
    "participation_ratio_bounds",
    "pivot_factors",
    "pivot_rows",
    "power_law",
    "principal_angles",
    "product_distance",
    "product_inner",
    "product_norm",
    "product_nuclear_norm",
    "product_sum",
    "product_svd",
    "product_truncate",
    "propagate",
    "prox_k_support_squared",
    "prox_nuclear",
    "prox_power",
    "prox_schatten",
    "prox_vector_k_support_squared",
    "psd_eigenvalues",
    "quantize",
    "rank_cost",
    "refresh",
    "schatten_norm",
    "shrink",
    "singular_values",
    "smallest_svd",
    "solve_gram",
    "solve_sylvester",
    "spectral_start",
    "stable_rank",
    "stochastic_round",
    "symmetrize",
    "to_minifloat",
    "top_singular_values",
    "truncated_svd",
    "vector_k_support_norm",
    "weighted_approximation",
    "weighted_singular_values",
    "weighted_svd",
    "working_dtype",
]
