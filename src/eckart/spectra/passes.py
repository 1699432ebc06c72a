"""What one pass over data shows: gradients and activations, from one `eckart.nn.observe`.

The spectrum of activations is that of the centred inputs of a matrix divided by √tokens: σ = √λ of their covariance.
All its values are known in either mode, since the covariance is at hand.
"""

import warnings
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from eckart import linalg
from eckart.nn import Observation, Patterns, Progress, member_name, observe

from .entry import Entry, complete_entry
from .rows import finite
from .spectrum import Source, entry_of, measure_all

WANTED = {"gradients": {"gradient"}, "activations": {"input_covariance", "input_sample"}}


def measure_passes(
    model: nn.Module,
    batches: Iterable[Any],
    of: Collection[str],
    *,
    mode: str,
    loss: Callable[[Any, Any], Tensor] | None = None,
    targets: Patterns = None,
    exclude: Patterns = None,
    progress: Progress | None = None,
) -> list[Entry]:
    """Spectra of the mean gradient, or of the inputs, or of both, of every matrix, from one pass over `batches`."""
    wanted = set[str]().union(*(WANTED[kind] for kind in of))
    seen = observe(model, batches, wanted, loss=loss, targets=targets, exclude=exclude, progress=progress)
    entries: list[Entry] = []
    if "activations" in of:
        entries += _activations(seen)
    if "gradients" in of:
        entries += _gradients(seen, mode, progress)
    return entries


def _gradients(seen: dict[str, Observation], mode: str, progress: Progress | None) -> list[Entry]:
    sources = [
        Source(label, (G.shape[-2], G.shape[-1]), partial(_member, G, index), {"tokens": observed.tokens})
        for name, observed in seen.items()
        if (G := observed.gradient) is not None
        for label, index in _members(name, None if G.dim() == 2 else len(G))
    ]
    return measure_all(
        sources,
        lambda s: entry_of(s.read(), name=s.name, of="gradients", mode=mode, extra=s.extra),
        progress=progress,
    )


def _members(name: str, stack: int | None) -> list[tuple[str, int | None]]:
    return [(name, None)] if stack is None else [(member_name(name, index), index) for index in range(stack)]


def _member(G: Tensor, index: int | None) -> Tensor:
    return G if index is None else G[index]


def _activations(seen: dict[str, Observation]) -> list[Entry]:
    """One entry for each distinct tensor: layers that read the same one (q/k/v) are named in `shared_with`."""
    found: list[tuple[str, Observation, int | None]] = []
    taken: set[str] = set()
    for name, observed in seen.items():
        if name not in taken and observed.covariance is not None:
            taken.update(observed.shared_with)
            stack = None if observed.stack_tokens is None else len(observed.stack_tokens)
            found += [(label, observed, index) for label, index in _members(name, stack)]
    idle = [label for label, observed, index in found if not _tokens(observed, index)]
    if idle:
        warnings.warn(f"no tokens reached {', '.join(idle)}: their activations are left out", stacklevel=2)
    return list(linalg.map_side_by_side(_activation, [each for each in found if each[0] not in idle]))


def _tokens(observed: Observation, index: int | None) -> int:
    stack = observed.stack_tokens
    return observed.tokens if index is None or stack is None else int(stack[index])


def _activation(each: tuple[str, Observation, int | None]) -> Entry:
    name, observed, index = each
    tokens = _tokens(observed, index)
    assert observed.covariance is not None
    C = _member(observed.covariance, index)
    values = linalg.psd_eigenvalues(C).sqrt()
    # C's own rounding, ε‖C‖_F/√n, moves an eigenvalue λ = σ² by that much at most.
    rounding = float(torch.finfo(C.dtype).eps * values.square().norm() / len(values) ** 0.5) ** 0.5
    extra: dict[str, Any] = {"tokens": tokens, "shared_with": observed.shared_with}
    if index is None and observed.input_sample is not None and len(observed.input_sample) > 2:
        extra["intrinsic_dimension"] = finite(float(linalg.intrinsic_dimension(observed.input_sample)))
    known = values[: min(tokens, len(values))]
    return complete_entry(name, "activations", (tokens, len(values)), known, rounding, extra)
