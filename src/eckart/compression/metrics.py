"""In which metric a matrix is approximated: C of its inputs and G of its outputs, minimising ‖G^½(W − W')C^½‖_F.

| metric | C (n, n) | G (m, m) | source |
|---|---|---|---|
| plain | none | none | Eckart and Young 1936 |
| fisher_rows | none | diag(Σ g∘g) | FWSVD, arXiv 2207.00112 |
| activation_scale | diag(RMS(x)^{2α}) | none | ASVD, arXiv 2312.05821 |
| input_covariance | Σ x xᵀ, shrunk | none | SVD-LLM, arXiv 2403.07378 |
| two_sided | Σ x xᵀ, shrunk | Σ g gᵀ, shrunk | K-FAC, arXiv 1503.05671 |

x (n,) are a layer's inputs, g (m,) the loss's gradients at its outputs. What was not observed counts as the identity.
Paper: FWSVD sums squared weight gradients per row, Σ g_i²‖x‖²; we leave out ‖x‖², which K-FAC takes as independent.
ASVD scales by mean|x|^α; we by the root mean square. SVD-LLM does not shrink.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from eckart.compression.settings import Settings
from eckart.linalg import shrink
from eckart.nn import Observation

Pair = tuple[Tensor | None, Tensor | None]  # C (n, n), G (m, m)


class Metric(NamedTuple):
    """A metric, and what `nn.observe` has to collect for it."""

    wanted: tuple[str, ...]
    pair: Callable[[Observation, Settings], Pair]


def _plain(seen: Observation, settings: Settings) -> Pair:
    return None, None


def _fisher_rows(seen: Observation, settings: Settings) -> Pair:
    G = seen.output_gradient_second_moment
    return None, None if G is None else torch.diag_embed(G.diagonal(dim1=-2, dim2=-1))


def _activation_scale(seen: Observation, settings: Settings) -> Pair:
    norms = seen.input_norms
    exponent = 2 * settings.options["exponent"]
    return None if norms is None else torch.diag_embed(norms**exponent), None


def _input_covariance(seen: Observation, settings: Settings) -> Pair:
    C = seen.input_second_moment
    return None if C is None else shrink(C, settings.shrink), None


def _two_sided(seen: Observation, settings: Settings) -> Pair:
    G = seen.output_gradient_second_moment
    return _input_covariance(seen, settings)[0], None if G is None else shrink(G, settings.shrink_outputs)


plain = Metric((), _plain)
fisher_rows = Metric(("output_gradient_covariance",), _fisher_rows)
activation_scale = Metric(("input_norms",), _activation_scale)
input_covariance = Metric(("input_covariance",), _input_covariance)
two_sided = Metric(("input_covariance", "output_gradient_covariance"), _two_sided)
