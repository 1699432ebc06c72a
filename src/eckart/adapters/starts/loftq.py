"""The start for a quantised base: the adapter carries what quantisation lost, as far as rank r can.

    s·B₀A₀ = best rank r of W_full − W_quantised        (LoftQ, 2310.08659)

The base stays as it is, and the model moves towards the unquantised one: Δ ≠ 0 by purpose.

Cost: block Lanczos on the difference; the full-precision weights are read one at a time.
Paper: LoftQ alternates Q = quantise(W − BA), BA = best rank r of W − Q, once in PEFT unless told otherwise. Here the
base is quantised already and other adapters may share it, so the second half is taken, once.
"""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from eckart.adapters.shapes.two_factor import TwoFactor
from eckart.adapters.starts.split import rounding, split
from eckart.adapters.starts.start import Look, LookAtAll, Prepared
from eckart.linalg import truncated_svd
from eckart.nn import Matrix, matrices
from eckart.nn.files import open_checkpoint
from eckart.nn.patterns import closest

Reader = Callable[[], Tensor]


def originals(look: LookAtAll) -> dict[str, Prepared]:
    """Where each matrix's full-precision weight is read."""
    readers = _readers(look.options["original"])
    return {matrix.name: Prepared(look.ranks[matrix.name], _reader(matrix, readers)) for matrix in look.matrices}


def residual(adapter: TwoFactor, look: Look) -> None:
    """s·B A is the best rank r of what the base lacks; it stays in the model."""
    W = look.exact_weight()
    full = look.given()
    if full.numel() != W.numel() or look.matrix.as_matrix(full).shape != W.shape:
        raise ValueError(
            f"original: {look.matrix.name} is {tuple(full.shape)} there, which is no weight of this {tuple(W.shape)} "
            "matrix; give the checkpoint that was quantised"
        )
    lost = look.matrix.as_matrix(full.detach()).to(W) - W
    split(adapter, *truncated_svd(lost, adapter.rank, method="krylov"), look.generator, rounding(lost))


def _readers(original: Any) -> dict[str, Reader]:
    """Matrix name → how to read its weight, in the shape of the parameter."""
    if original is None:
        raise ValueError(
            "original: the start needs the weights before quantisation; give the path of their checkpoint, a mapping "
            "of names to tensors, or the model that has them"
        )
    if isinstance(original, str | os.PathLike):
        checkpoint = open_checkpoint(original)
        return {found.name: partial(checkpoint.read, found.key) for found in checkpoint.matrices()}
    if isinstance(original, nn.Module):
        return {
            name: partial(getattr, found.module, found.parameter)
            for found in matrices(original)
            for name in (found.name, *found.tied)
        }
    if isinstance(original, Mapping):
        return {name.removesuffix(".weight"): partial(original.__getitem__, name) for name in original}
    raise TypeError(f"original: {type(original).__name__} is no path, mapping of names to tensors, or model")


def _reader(matrix: Matrix, readers: Mapping[str, Reader]) -> Reader:
    for name in (matrix.name, *matrix.tied):
        if name in readers:
            return readers[name]
    raise ValueError(f"original: it has no weight of {matrix.name}; closest: {closest(matrix.name, readers)}")
