"""Observe the matrices of a model for an adapter that is to come, under the names that they had before any adapter.

Adapters that the model has already are disabled meanwhile: the new one will act in their place.
Paper: none.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from eckart.adapters.using.switching import disabled
from eckart.nn import Matrix, Observation, Progress, matrices, observe


def observe_bases(
    model: nn.Module,
    found: Sequence[Matrix],
    wanted: Collection[str],
    batches: Iterable[Any],
    loss: Callable[[Any, Any], Tensor] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Observation]:
    """What `nn.observe` tells of some matrices.

    Args:
        model: The model, adapted or not.
        found: The matrices, as `targets.chosen` gives them.
        wanted: As for `nn.observe`.
        batches: Likewise.
        loss: Likewise.
        forward: Likewise.
        progress: Likewise.

    Returns:
        Matrix name → Observation, without those that the batches do not use.

    Example:
        >>> import torch
        >>> from eckart.adapters import adapt
        >>> from eckart.adapters.choosing.targets import chosen
        >>> model = nn.Sequential(nn.Linear(2, 3))
        >>> _ = adapt(model, rank=1)
        >>> list(observe_bases(model, chosen(model), ["input_norms"], [torch.ones(4, 2)]))
        ['0']
    """
    names = {(id(matrix.module), matrix.parameter): matrix.name for matrix in found}
    now = {each.name: names.get((id(each.module), each.parameter)) for each in matrices(model)}
    with disabled(model):
        targets = [key for key in now if now[key]]
        seen = observe(model, batches, wanted, targets=targets, loss=loss, forward=forward, progress=progress)
    before = {key: name for key, name in now.items() if name is not None}
    return {before[key]: _renamed(each, before[key], before) for key, each in seen.items()}


def _renamed(seen: Observation, name: str, before: dict[str, str]) -> Observation:
    return replace(seen, name=name, shared_with=tuple(before.get(other, other) for other in seen.shared_with))
