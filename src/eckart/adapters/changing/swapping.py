"""Give trained factors other values of another shape, and their optimizer the matching state: what `shrink` ends with.

Everything is computed before anything is changed, so that an error leaves model and optimizer as they were.

Paper: none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eckart.adapters.adapter import Adapter

LINEAR = ("exp_avg", "momentum_buffer", "grad_avg", "prev")  # sums of gradients, as torch's optimizers call them


class Factor(NamedTuple):
    """What becomes of one parameter: its new value, and how a state tensor of the old shape follows."""

    value: Tensor
    follow: Callable[[Tensor, bool], Tensor]  # (the tensor, whether it is of squares)


@dataclass
class Change:
    """What becomes of one adapter."""

    adapter: Adapter
    rank: int  # 0: it goes
    factors: dict[str, Factor] = field(default_factory=dict)
    keep: Tensor | None = None  # (rank,) indices of the triplets that stay; None where directions are turned


@torch.no_grad()
def swap(optimizer: torch.optim.Optimizer | None, changes: Sequence[Change]) -> None:
    """Make the changes, in the adapters and in the optimizer.

    Raises:
        TypeError: A state tensor that is no number and has not its parameter's shape, or is quantised.
    """
    plans = []
    for change in changes:
        for name, factor in change.factors.items():
            old: nn.Parameter = getattr(change.adapter, name)
            state = _followed(optimizer, old, factor, f"{type(change.adapter).__name__}.{name}")
            plans.append((change, name, old, factor, state))
    new_of: dict[nn.Parameter, nn.Parameter | None] = {}
    for change, name, old, factor, state in plans:
        new = nn.Parameter(factor.value.contiguous(), requires_grad=old.requires_grad)
        if old.grad is not None:
            new.grad = factor.follow(old.grad, False).contiguous()
        setattr(change.adapter, name, new)
        change.adapter.rank = change.rank
        new_of[old] = new if change.rank else None
        if optimizer is not None:
            optimizer.state.pop(old, None)
            if state is not None and change.rank:
                optimizer.state[new] = state
    for group in optimizer.param_groups if optimizer is not None else ():
        _put(group, new_of)


def _followed(
    optimizer: torch.optim.Optimizer | None, old: nn.Parameter, factor: Factor, label: str
) -> dict[str, Any] | None:
    """The state of a parameter after its change; None where it has none yet."""
    if optimizer is None or old not in optimizer.state:
        return None
    shaped = shaped_states(optimizer, old, label)
    squares = {key: key not in LINEAR and bool((value >= 0).all()) for key, value in shaped.items()}
    followed = {key: factor.follow(value, squares[key]).contiguous() for key, value in shaped.items()}
    return {**optimizer.state[old], **followed}


def shaped_states(optimizer: torch.optim.Optimizer | None, parameter: nn.Parameter, label: str) -> dict[str, Tensor]:
    """What an optimizer keeps of each entry of a parameter: moments and the like; empty where it has not stepped it.

    Raises:
        TypeError: A state tensor that is no number and has not its parameter's shape, or is quantised.
    """
    shaped = {}
    for key, value in (optimizer.state.get(parameter, {}) if optimizer is not None else {}).items():
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point():
            shaped[key] = value
        elif isinstance(value, Tensor) and value.numel() > 1:
            raise TypeError(
                f"optimizer: {type(optimizer).__name__} keeps {key!r} of shape {tuple(value.shape)} and type "
                f"{value.dtype} for {label} {tuple(parameter.shape)}, which cannot follow; pass optimizer=None and "
                "make a new optimizer afterwards, or use one whose states are shaped like the parameters"
            )
    return shaped


def _put(group: dict[str, Any], new_of: dict[nn.Parameter, nn.Parameter | None]) -> None:
    """The new parameters in the old places of a group; names go with those that leave."""
    stays = [new_of.get(parameter, parameter) is not None for parameter in group["params"]]
    for key in ("params", "param_names"):
        if key in group:
            group[key][:] = [value for value, stay in zip(group[key], stays, strict=True) if stay]
    group["params"][:] = [new_of.get(parameter, parameter) for parameter in group["params"]]
