"""Which method and which rank fit into a memory: a short list of rows, tried from the largest rank down.

For each rank, d/2 to d/32 of each matrix's smaller dimension d, the rows in the order of `ROWS`, each with ordinary
steps and with steps in the backward pass, which give the same numbers. The first that fits is the suggestion. What each
takes is what `memory` predicts. Activations are not in it; `reserve` leaves room for them.
Paper: the order of the rows is that of APOLLO's table 2 (2412.05270): perplexities at a rank of d/4.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from eckart.nn import Patterns
from eckart.optim.budget.measuring import in_units, predict
from eckart.optim.groups import param_groups
from eckart.optim.methods import METHODS
from eckart.optim.optimizer import LowRankOptimizer

ROWS = ("fira", "apollo", "galore", "galore-8bit", "q-galore")
SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)
LAST = "apollo-mini"  # rank 1: tried when no other fits


@dataclass(frozen=True)
class Candidate:
    """A method, its rank (a share of each matrix's smaller dimension, or a number), how it steps, what it takes."""

    method: str
    rank: float
    in_backward: bool
    bytes: int
    fits: bool


@dataclass(frozen=True)
class Plan:
    """What `plan` found; printed, a table. `chosen` is None where nothing fits."""

    limit: int
    chosen: Candidate | None
    candidates: Sequence[Candidate]  # as they were tried
    adamw: int  # bytes that AdamW on everything takes

    def options(self) -> dict[str, Any]:
        """`method` and `rank` for `LowRankOptimizer`; where `chosen.in_backward` is set, call `step_in_backward` too.

        Raises:
            ValueError: Nothing fits, with the least that is needed.
        """
        if self.chosen is None:
            least = min(self.candidates, key=lambda each: each.bytes)
            raise ValueError(
                f"memory: {in_units(self.limit)} are too few; the least is {least.method} in the backward pass with "
                f"{in_units(least.bytes)}. Give more, reserve less, take bfloat16 weights or a smaller model"
            )
        return {"method": self.chosen.method, "rank": self.chosen.rank}

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{'method':<12} {'rank':>7} {'step in':>9} {'takes':>10}  of {in_units(self.limit)}"]
        lines.append(
            f"{'adamw':<12} {'–':>7} {'step':>9} {in_units(self.adamw):>10}  {_says(self.adamw <= self.limit)}"
        )
        for each in self.candidates:
            where, rank = "backward" if each.in_backward else "step", f"d/{1 / each.rank:.0f}" if each.rank < 1 else "1"
            says = "suggested" if each is self.chosen else _says(each.fits)
            lines.append(f"{each.method:<12} {rank:>7} {where:>9} {in_units(each.bytes):>10}  {says}")
        return "\n".join(lines)


def plan(
    model: nn.Module,
    memory: int | str,
    *,
    reserve: int | str = 0,
    methods: Sequence[str] = ROWS,
    targets: Patterns = None,
    exclude: Patterns = None,
) -> Plan:
    """Suggest a method and a rank whose weights, gradients, states and workspace fit.

    Args:
        model: On any device; "meta" does.
        memory: Bytes, or "6GB" (10⁹ each) or "6GiB" (2³⁰ each).
        reserve: What of it is for activations and all else; the same.
        methods: Rows of `METHODS`, best first.
        targets: As for `param_groups`.
        exclude: The same.

    Raises:
        ValueError: No memory that can be read, or an unknown method.

    Example:
        >>> model = nn.Sequential(nn.Linear(1024, 1024, bias=False), nn.Linear(1024, 1024, bias=False))  # 8.4 MB
        >>> found = plan(model, "24MB", methods=["fira", "apollo"])
        >>> print(found)
        method          rank   step in      takes  of 24.00 MB
        adamw              –      step   33.55 MB  does not fit
        fira             d/2      step   56.62 MB  does not fit
        fira             d/2  backward   46.14 MB  does not fit
        apollo           d/2      step   46.14 MB  does not fit
        apollo           d/2  backward   35.65 MB  does not fit
        fira             d/4      step   36.70 MB  does not fit
        fira             d/4  backward   29.36 MB  does not fit
        apollo           d/4      step   33.55 MB  does not fit
        apollo           d/4  backward   26.21 MB  does not fit
        fira             d/8      step   28.31 MB  does not fit
        fira             d/8  backward   22.54 MB  suggested
        >>> optimizer = LowRankOptimizer(model, lr=1e-3, **found.options())
    """
    limit = bytes_of(memory, "memory") - bytes_of(reserve, "reserve")
    if unknown := set(methods) - set(METHODS):
        raise ValueError(f"methods: {min(unknown)!r}; some of {', '.join(METHODS)}")
    tried: list[Candidate] = []
    cases = [(method, share) for share in SHARES for method in methods] + [(LAST, 1)]
    for method, rank in cases:
        for in_backward in (False, True):
            takes = _takes(model, method, rank, in_backward, targets, exclude)
            tried.append(Candidate(method, rank, in_backward, takes, takes <= limit))
            if takes <= limit:
                return Plan(limit, tried[-1], tuple(tried), _adamw(model))
    return Plan(limit, None, tuple(tried), _adamw(model))


def _takes(model: nn.Module, method: str, rank: float, in_backward: bool, targets: Patterns, exclude: Patterns) -> int:
    groups = param_groups(model, rank, targets=targets, exclude=exclude)
    return predict(model, LowRankOptimizer(groups, method=method), int(in_backward)).total


def _adamw(model: nn.Module) -> int:
    """AdamW on everything, with ordinary steps."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return predict(model, LowRankOptimizer([{"params": trained, "rank": None}])).total


def _says(fits: bool) -> str:
    return "fits" if fits else "does not fit"


def bytes_of(size: int | str, name: str = "memory") -> int:
    """Read "6GB" or "6GiB".

    Example:
        >>> bytes_of("6GB"), bytes_of("1.5 GiB"), bytes_of(100)
        (6000000000, 1610612736, 100)
    """
    found = re.fullmatch(r"([\d.]+)\s*(?:([kMGT]?)(i?)B)", str(size).strip()) if isinstance(size, str) else None
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    if found is None or found[1].count(".") > 1 or found[1] == ".":
        raise ValueError(
            f"{name}: {size!r}; bytes, or a number with a unit as in '6GB' (10⁹ each) or '6GiB' (2³⁰ each)"
        )
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " kMGT".index(found[2] or " "))
