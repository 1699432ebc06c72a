"""What is refused before anything changes: gradients that are no numbers, groups that can't be, states of others."""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from eckart.optim.inner import INNER
from eckart.optim.limiters import LIMITERS
from eckart.optim.projectors import PROJECTORS
from eckart.optim.refreshing import SCHEDULES
from eckart.optim.residuals import ORTHONORMAL, RESIDUALS
from eckart.optim.sharding import Shards
from eckart.optim.transports import TRANSPORTS
from eckart.optim.view import SIDES, as_matrix_shape

CHOICES: dict[str, Sequence[Any]] = {
    "side": (None, *SIDES),
    "projector": tuple(PROJECTORS),
    "inner": tuple(INNER),
    "residual": tuple(RESIDUALS),
    "transport": tuple(TRANSPORTS),
    "limiter": tuple(LIMITERS),
    "schedule": SCHEDULES,
    "moments": ("float32", "8bit"),
    "basis": ("float32", "4bit", "seed"),
}


def in_subspace(p: Tensor, group: Mapping[str, Any]) -> bool:
    """Whether a parameter is trained in a subspace; else AdamW has it."""
    return group["rank"] is not None and p.ndim >= 2


def require_finite(parameters: Sequence[Tensor], name: Callable[[Tensor], str]) -> None:
    """Fail where a gradient is sparse, or not finite (on the CPU, where looking waits for nothing).

    Raises:
        ValueError: With the parameter's name.
    """
    for p in parameters:
        assert p.grad is not None
        if p.grad.layout != torch.strided:
            raise ValueError(f"{name(p)}: its gradient is sparse; give the embedding sparse=False")
    here = [Shards(p).here(p.grad) for p in parameters if p.grad is not None and p.device.type == "cpu"]
    if not here or torch.nn.utils.get_total_norm(here).isfinite():
        return
    for p in parameters:
        assert p.grad is not None
        bad = int((~Shards(p).here(p.grad).isfinite()).sum())
        if bad:
            raise ValueError(
                f"{name(p)}: {bad} of {p.numel()} entries of its gradient are NaN or infinite; nothing was changed. "
                "Leave this step out (optimizer.zero_grad()), or look at the learning rate and the data"
            )


def require_group(group: Mapping[str, Any]) -> None:
    """Fail where a group's options can't be.

    Raises:
        ValueError: With the option, what it is and what it may be.
    """
    for key, allowed in CHOICES.items():
        if group[key] not in allowed:
            close = get_close_matches(str(group[key]), [str(each) for each in allowed], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{key}: {group[key]!r}; one of {', '.join(map(str, allowed))}{hint}")
    _require_numbers(group)
    projector = PROJECTORS[group["projector"]]
    if group["residual"] in ORTHONORMAL and not projector.orthonormal:
        raise ValueError(
            f"residual: {group['residual']!r} takes off what an orthonormal basis holds, and {group['projector']!r} "
            "draws one that is not; use projector='orthonormal'"
        )
    drawn = not projector.looks
    if (group["basis"] == "seed" and not drawn) or (group["basis"] == "4bit" and drawn):
        raise ValueError(f"basis: {group['basis']!r} does not go with projector {group['projector']!r}")
    if group["transport"] == "ldadam" and group["inner"] != "adamw":
        raise ValueError(f"transport: 'ldadam' turns Adam's moments, and inner is {group['inner']!r}")
    for i, p in enumerate(group["params"]):
        if in_subspace(p, group):
            _require_rank(p, group, group["param_names"][i] if "param_names" in group else f"params[{i}]")


def _require_numbers(group: Mapping[str, Any]) -> None:
    for key, low in (("lr", 0.0), ("eps", 0.0), ("weight_decay", 0.0), ("limit", 0.0), ("scale", 0.0)):
        if not group[key] >= low:
            raise ValueError(f"{key}: {group[key]!r}; at least {low:g}")
    if not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"betas: {group['betas']!r}; both from 0 to below 1")
    if isinstance(group["gap"], bool) or not isinstance(group["gap"], int) or group["gap"] < 1:
        raise ValueError(f"gap: {group['gap']!r}; a whole number of steps, at least 1")


def _require_rank(p: Tensor, group: Mapping[str, Any], name: str) -> None:
    rank = group["rank"]
    if p.is_complex() or not p.is_floating_point():
        raise ValueError(f"{name}: {p.dtype}; give real floating-point parameters")
    shape = as_matrix_shape(p.shape, group["stack"])
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= min(shape[-2:]):
        raise ValueError(
            f"rank: {rank!r} for {name} {tuple(p.shape)}; from 1 to {min(shape[-2:])}, or rank=None for AdamW "
            "(param_groups: exclude it, or give it a rank of its own)"
        )


def require_same_model(groups: Sequence[Mapping[str, Any]], saved: Mapping[str, Any]) -> None:
    """Fail where a state dict is of another model or another method, before anything is loaded.

    Raises:
        ValueError: With the first difference.
    """
    if len(groups) != len(saved["param_groups"]):
        raise ValueError(f"state_dict: {len(saved['param_groups'])} groups, and this optimizer has {len(groups)}")
    for group, other in zip(groups, saved["param_groups"], strict=True):
        names = group.get("param_names")
        if len(group["params"]) != len(other["params"]):
            raise ValueError(
                f"state_dict: a group has {len(other['params'])} parameters, this optimizer's {len(group['params'])}"
            )
        if names and other.get("param_names") not in (None, names):
            first = next(a for a, b in zip(other["param_names"], names, strict=True) if a != b)
            raise ValueError(f"state_dict: it is of another model: it names {first!r}, which is not where it was")
        for i, (p, key) in enumerate(zip(group["params"], other["params"], strict=True)):
            state = saved["state"].get(key)
            if state:
                _require_fits(p, state, names[i] if names else f"params[{i}]")


def _require_fits(p: Tensor, state: Mapping[str, Any], name: str) -> None:
    kept = state.get("exp_avg")
    if kept is None:
        return
    shape = tuple(p.shape)
    if "side" in state:
        matrix = as_matrix_shape(p.shape, kept.ndim == 3)
        shape = (*matrix[:-2], matrix[-1 if int(state["side"]) else -2], kept.shape[-1])
    if tuple(kept.shape) != shape:
        raise ValueError(
            f"state_dict: exp_avg of {name} is {tuple(kept.shape)}, and {shape} is needed for {tuple(p.shape)}; it is "
            "of another model, or of one part of a sharded one (torch.distributed.checkpoint reshards)"
        )
