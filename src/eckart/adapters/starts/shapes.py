"""Starts of the shapes beyond two factors: one of them zero, so that Δ = 0, the others uniform in ±1/√columns.

Paper: VeRA 2310.11454 (b = 0, d = 0.1), LoHa 2108.06098, LoKr 2309.14859; the zero stands where PEFT puts it.
"""

import torch
from torch import Tensor

from eckart.adapters.shapes.hadamard import Hadamard
from eckart.adapters.shapes.kronecker import Kronecker
from eckart.adapters.shapes.vectors import Vectors
from eckart.adapters.starts.start import Look


def vectors(adapter: Vectors, look: Look) -> None:
    """b zero, d constant: the option `d`."""
    adapter.b.zero_()
    adapter.d.fill_(look.options["d"])


def hadamard(adapter: Hadamard, look: Look) -> None:
    """The last factor zero, the others uniform."""
    for factor in (adapter.B1, adapter.A1, adapter.B2):
        _uniform(factor, look.generator)
    adapter.A2.zero_()


def kronecker(adapter: Kronecker, look: Look) -> None:
    """W₁, or its left factor, zero; the others uniform."""
    first, *others = adapter.factors
    getattr(adapter, first).zero_()
    for name in others:
        _uniform(getattr(adapter, name), look.generator)


def _uniform(factor: Tensor, generator: torch.Generator) -> None:
    bound = factor.shape[-1] ** -0.5
    factor.copy_(torch.empty(factor.shape).uniform_(-bound, bound, generator=generator))
