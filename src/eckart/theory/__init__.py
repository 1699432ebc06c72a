"""The theory of low-rank learning dynamics, runnable: deep linear networks, their compression, matrix completion."""

from eckart.theory.compression import compress, compressed_rates, parameter_counts, trajectory_error
from eckart.theory.descent import descend, first_gradient, orthogonal_weights, product
from eckart.theory.losses import completion, factorization, regression, sensing

__all__ = [
    "completion",
    "compress",
    "compressed_rates",
    "descend",
    "factorization",
    "first_gradient",
    "orthogonal_weights",
    "parameter_counts",
    "product",
    "regression",
    "sensing",
    "trajectory_error",
]
