"""The family, one row for each method: its choice on every axis. `METHODS` drives `compress`, the CLI, docs, tests.

Adding a method: one row; or one file for a new metric, allocation, remainder or unit, and one row; its test.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from eckart.compression import metrics
from eckart.compression.metrics import Metric
from eckart.compression.pieces.matrix_piece import MatrixPiece
from eckart.compression.pieces.piece import Piece
from eckart.compression.pieces.quantized_piece import with_codes
from eckart.compression.pieces.sparse_piece import with_entries
from eckart.compression.pieces.units import basis_sharing, modegpt, neurons
from eckart.compression.settings import Settings
from eckart.nn import Matrix

Unit = Callable[[nn.Module, Sequence[Matrix], Settings, Metric], list[Piece]]


@dataclass(frozen=True)
class Method:
    """One way to compress.

    Args:
        source: arXiv id.
        says: What sets it apart, in a few words.
        metric: In which error a decomposition is best.
        allocation: Which size for which piece: a name of `ALLOCATIONS`.
        unit: What is decomposed together, how it is stored, and with what remainder.
        inputs: "dense", or "anchored": each block is fitted on what the compressed blocks before it give.
        options: What the method alone knows, name → default; `compress` takes them as keywords.

    Example:
        >>> row = METHODS["asvd"]
        >>> row.allocation, row.inputs, row.options
        ('uniform', 'dense', {'exponent': 0.5})
    """

    source: str
    says: str
    metric: Metric
    allocation: str
    unit: Unit
    inputs: str = "dense"
    options: Mapping[str, Any] = field(default_factory=dict)


def each_matrix(
    model: nn.Module, found: Sequence[Matrix], settings: Settings, metric: Metric, *, storage: str
) -> list[Piece]:
    """Every matrix alone."""
    return [MatrixPiece([matrix], settings, metric, storage) for matrix in found]


factors, pivoted = partial(each_matrix, storage="factors"), partial(each_matrix, storage="pivoted")

METHODS: dict[str, Method] = {
    "svd": Method("Eckart and Young 1936", "truncated SVD of the weights alone", metrics.plain, "uniform", factors),
    "fwsvd": Method(
        "2207.00112", "rows weighted by the loss's gradients", metrics.fisher_rows, "uniform", factors
    ),
    "asvd": Method(
        "2312.05821", "columns scaled by the size of what they read", metrics.activation_scale, "uniform", factors,
        options={"exponent": 0.5},
    ),
    "svd-llm": Method(
        "2403.07378", "best in the covariance of the inputs", metrics.input_covariance, "uniform", factors
    ),
    "aa-svd": Method(
        "2604.02119", "fitted to what the compressed blocks before give", metrics.input_covariance, "uniform", factors,
        inputs="anchored",
    ),
    "two-sided": Method(
        "1503.05671", "best in the covariances of inputs and output gradients, pivoted", metrics.two_sided, "hulls",
        pivoted,
    ),
    "laser": Method(
        "2312.13558", "the few matrices that bear it cut hard, the others dense", metrics.plain, "selected", factors
    ),
    "low-rank+sparse": Method(
        "2409.13652", "a product and the largest entries of what it leaves", metrics.activation_scale, "uniform",
        with_entries, options={"exponent": 1.0, "low_rank_share": 0.25},
    ),
    "low-rank+int8": Method(
        "2410.06040", "8 bits for each entry, and the best product for what they lose", metrics.input_covariance,
        "uniform", partial(with_codes, bits=8), options={"block": 64},
    ),
    "low-rank+int4": Method(
        "2410.06040", "4 bits for each entry, and the best product for what they lose", metrics.input_covariance,
        "uniform", partial(with_codes, bits=4), options={"block": 64},
    ),
    "basis-sharing": Method(
        "2410.03765", "one basis for the same kind of matrix in neighbouring layers", metrics.input_covariance,
        "uniform", basis_sharing, options={"neighbours": 2, "siblings": False},
    ),
    "modegpt": Method(
        "2408.09632", "fewer neurons and dimensions of heads: smaller dense layers", metrics.input_covariance,
        "uniform", modegpt,
    ),
    "auto": Method(
        "ours", "fewer neurons, pivoted products for the rest, both two-sided; the best of several allocations",
        metrics.two_sided, "candidates", neurons,
    ),
}  # fmt: skip
