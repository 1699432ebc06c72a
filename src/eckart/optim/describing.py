"""An optimizer in few lines, for `print`: what is trained in a subspace and how, and what AdamW has."""

from typing import Any

import torch

from eckart.optim.checking import in_subspace
from eckart.optim.methods import AXES, DEFAULTS


def described(optimizer: torch.optim.Optimizer) -> str:
    """One line for all groups that are alike but for their ranks.

    Args:
        optimizer: A `LowRankOptimizer`.

    Example:
        >>> from eckart.optim import LowRankOptimizer
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 8))
        >>> print(LowRankOptimizer(model, lr=0.01, rank={"0": 1, "1": 2}, method="fira", gap=50))
        LowRankOptimizer (
            2 matrices, rank 1 to 2: power, adamw, norm-scaled, keep, growth; lr=0.01, gap=50, scale=0.25
            2 others: AdamW; lr=0.01
        )
    """
    ranks: dict[str, list[float]] = {}
    others: dict[str, int] = {}
    for group in optimizer.param_groups:
        low = sum(in_subspace(p, group) for p in group["params"])
        if low:
            ranks.setdefault(_how(group), []).extend([group["rank"]] * low)
        if low < len(group["params"]):
            how = ", ".join(_changed(group, ("betas", "eps", "weight_decay")))
            others[how] = others.get(how, 0) + len(group["params"]) - low
    lines = [f"{_count(len(each), 'matrix', 'matrices')}, rank {_span(each)}: {how}" for how, each in ranks.items()]
    lines += [f"{_count(count, 'other', 'others')}: AdamW; {how}" for how, count in others.items()]
    return "\n    ".join([f"{type(optimizer).__name__} (", *lines]) + "\n)"


def _how(group: dict[str, Any]) -> str:
    options = _changed(group, tuple(key for key in DEFAULTS if key != "stack"))
    return f"{', '.join(group[axis] for axis in AXES)}; {', '.join(options)}"


def _changed(group: dict[str, Any], keys: tuple[str, ...]) -> list[str]:
    """The rate, and what differs from the defaults."""
    differing = {key: group[key] for key in keys if group[key] != DEFAULTS[key]}
    return [f"{key}={_short(value)}" for key, value in ({"lr": group["lr"]} | differing).items()]


def _short(value: Any) -> str:
    return f"{float(value):.4g}" if isinstance(value, float | torch.Tensor) else str(value)


def _span(ranks: list[float]) -> str:
    low, high = min(ranks), max(ranks)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _count(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
