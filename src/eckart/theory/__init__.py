"""The theory of low-rank learning dynamics, runnable: deep linear networks, their compression, matrix completion."""

from eckart.theory.blocks import Block, block_form, classification_bulk, factorization_bulk, moving_bases
from eckart.theory.compression import compress, compressed_rates, parameter_counts, trajectory_error
from eckart.theory.descent import descend, first_gradient, orthogonal_weights, product
from eckart.theory.features import (
    GeometricDecay,
    compression_ratio,
    geometric_decay,
    layerwise_within_between,
    linear_features,
    within_between,
)
from eckart.theory.gradients import gradient_at, gradient_course, slowest_part, stable_rank_bound
from eckart.theory.imputation import Imputation, soft_impute, tuned_soft_impute
from eckart.theory.losses import completion, factorization, regression, sensing
from eckart.theory.matrix_completion import Completion, complete_matrix
from eckart.theory.nonlinear import (
    energy_outside,
    low_rank_start,
    moving_block,
    nonlinear_regression,
    tail_ratio,
)
from eckart.theory.problems import balanced_classes, low_rank_target, whiten
from eckart.theory.surrogates import completion_surrogate, sensing_surrogate, spectral_rates

__all__ = [
    "Block",
    "Completion",
    "GeometricDecay",
    "Imputation",
    "balanced_classes",
    "block_form",
    "classification_bulk",
    "complete_matrix",
    "completion",
    "completion_surrogate",
    "compress",
    "compressed_rates",
    "compression_ratio",
    "descend",
    "energy_outside",
    "factorization",
    "factorization_bulk",
    "first_gradient",
    "geometric_decay",
    "gradient_at",
    "gradient_course",
    "layerwise_within_between",
    "linear_features",
    "low_rank_start",
    "low_rank_target",
    "moving_bases",
    "moving_block",
    "nonlinear_regression",
    "orthogonal_weights",
    "parameter_counts",
    "product",
    "regression",
    "sensing",
    "sensing_surrogate",
    "slowest_part",
    "soft_impute",
    "spectral_rates",
    "stable_rank_bound",
    "tail_ratio",
    "trajectory_error",
    "tuned_soft_impute",
    "whiten",
    "within_between",
]
