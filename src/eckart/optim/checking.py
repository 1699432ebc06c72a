"""What is refused before anything changes: gradients that are no numbers, groups that can't be."""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from eckart.nn.patterns import closest
from eckart.optim.inner import INNER
from eckart.optim.limiters import LIMITERS
from eckart.optim.methods import AXES, DEFAULTS, METHODS, Method
from eckart.optim.projectors import PROJECTORS
from eckart.optim.residuals import ORTHONORMAL, RESIDUALS
from eckart.optim.sharding import Shards, agreed, here
from eckart.optim.step.refreshing import SCHEDULES
from eckart.optim.step.view import SIDES, as_matrix_shape, is_left
from eckart.optim.transports import TRANSPORTS

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

KNOWN = ("params", "param_names", "lr", "rank", *AXES, *DEFAULTS)


def in_subspace(p: Tensor, group: Mapping[str, Any]) -> bool:
    """Whether a parameter is trained in a subspace; else AdamW has it."""
    return group["rank"] is not None and p.ndim >= 2


def require_finite(parameters: Sequence[Tensor], name: Callable[[Tensor], str], alone: bool = False) -> None:
    """Fail where a gradient is sparse, or not finite (on the CPU, where looking waits for nothing).

    Where parameters are shared out between processes all of them fail, for one number that they exchange.

    Args:
        parameters: With gradients.
        name: Gives a parameter's name.
        alone: Whether other parameters make steps of their own, within one backward pass.

    Raises:
        ValueError: With the parameter's name.
    """
    for p in parameters:
        assert p.grad is not None
        if p.grad.layout != torch.strided:
            raise ValueError(f"{name(p)}: its gradient is sparse; give the embedding sparse=False")
    looked = [p for p in parameters if p.device.type == "cpu"]
    gradients = [here(p.grad) for p in looked if p.grad is not None]
    if not looked or not agreed((~torch.nn.utils.get_total_norm(gradients).isfinite()).float(), looked):
        return
    counts = agreed(torch.stack([(~grad.isfinite()).sum() for grad in gradients]), looked).tolist()
    stayed = "nothing was changed"
    if alone:
        stayed = "it was not changed; what the backward pass came to before has made its step"
    for p, bad in zip(looked, counts, strict=True):
        if bad:
            raise ValueError(
                f"{name(p)}: {bad} of {p.numel()} entries of its gradient are NaN or infinite"
                f"{' on one process' if here(p) is not p else ''}; {stayed}. "
                "Leave this step out (optimizer.zero_grad()), or look at the learning rate and the data"
            )


def require_known(method: str, options: Mapping[str, Any]) -> Method:
    """The row of a method.

    Raises:
        ValueError: There is no such method.
        TypeError: There is no such option.
    """
    if method not in METHODS:
        raise ValueError(f"method: {method!r}; closest: {closest(method, METHODS)}; one of {', '.join(METHODS)}")
    known = METHODS[method].options()
    if choosing := {"targets", "exclude", "decay_vectors"} & set(options):
        raise TypeError(f"{min(choosing)}: give param_groups(model, rank, {min(choosing)}=…) instead of the model")
    if unknown := set(options) - set(known):
        raise TypeError(
            f"LowRankOptimizer takes no {min(unknown)!r}; closest: {closest(min(unknown), known)}; options are "
            f"{', '.join(known)}"
        )
    return METHODS[method]


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
    for key in group:
        close = [] if key in KNOWN else get_close_matches(key, KNOWN, n=1, cutoff=0.8)
        if close:  # else it is of someone else, as a scheduler's initial_lr
            raise ValueError(f"params: a group has an option {key!r}; did you mean {close[0]!r}?")
    _require_numbers(group)
    projector = PROJECTORS[group["projector"]]
    if group["residual"] in ORTHONORMAL and not projector.orthonormal:
        raise ValueError(
            f"residual: {group['residual']!r} takes off what an orthonormal basis holds, and {group['projector']!r} "
            "draws one that is not; use projector='orthonormal'"
        )
    drawn = not projector.looks
    kept = projector.looks and projector.renew is not None
    if (group["basis"] == "seed" and not drawn) or (group["basis"] == "4bit" and not kept):
        raise ValueError(f"basis: {group['basis']!r} does not go with projector {group['projector']!r}")
    for key, value, inner in (("transport", "ldadam", "adamw"), ("projector", "momentum-power", "adamw")):
        if group[key] == value and group["inner"] != inner:
            raise ValueError(f"{key}: {value!r} goes by the moments of {inner!r}, and inner is {group['inner']!r}")
    if projector.renew is None and group["schedule"] != "fixed":
        raise ValueError(f"schedule: {group['schedule']!r}, and projector {group['projector']!r} moves at each step")
    for i, p in enumerate(group["params"]):
        if in_subspace(p, group):
            name = group["param_names"][i] if "param_names" in group else f"params[{i}]"
            _require_rank(p, group, name)
            is_left(tuple(p.shape), group["side"], Shards(p, group["stack"]).dim, group["stack"], name)


def _require_numbers(group: Mapping[str, Any]) -> None:
    for key in ("lr", "eps", "weight_decay", "limit", "scale", "residual_scale", "basis_lr", "adapt_above"):
        if not isinstance(group[key], Real | Tensor) or not group[key] >= 0:
            raise ValueError(f"{key}: {group[key]!r}; a number, at least 0")
    if len(group["betas"]) != 2 or not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"betas: {group['betas']!r}; two numbers from 0 to below 1")
    if isinstance(group["gap"], bool) or not isinstance(group["gap"], int) or group["gap"] < 1:
        raise ValueError(f"gap: {group['gap']!r}; a whole number of steps, at least 1")
    if isinstance(group["seed"], bool) or not isinstance(group["seed"], int):
        raise ValueError(f"seed: {group['seed']!r}; a whole number")


def _require_rank(p: Tensor, group: Mapping[str, Any], name: str) -> None:
    rank = group["rank"]
    if p.is_complex() or not p.is_floating_point():
        raise ValueError(f"{name}: {p.dtype}; give real floating-point parameters")
    if group["stack"] and p.ndim > 3:
        raise ValueError(f"stack: {name} {tuple(p.shape)} has {p.ndim} dimensions; a stack of matrices has 3")
    most = min(as_matrix_shape(p.shape, group["stack"])[-2:])
    share = isinstance(rank, float) and 0 < rank < 1
    if not share and (isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= most):
        raise ValueError(
            f"rank: {rank!r} for {name} {tuple(p.shape)}; from 1 to {most}, or below 1 as a share of {most}. "
            "AdamW has what param_groups excludes, and groups with rank=None; a mapping gives a rank to each"
        )
