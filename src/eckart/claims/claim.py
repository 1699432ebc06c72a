"""A claim: one sentence of the overview, what it predicts, how to measure it, and whether the two agree.

A claim's `run` is a plain function that returns a `Result`: checks, each a predicted and a measured number with a
tolerance, and panels, the figure as plain data. The verdict is nothing but the checks. All of it turns into JSON and
back, so that a result can be kept, resumed and drawn later.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Relation = Literal["=", "≤", "≥"]
SIZES = ("small", "paper")


@dataclass(frozen=True)
class Check:
    """One number that the theory predicts, beside the number that was measured.

    Args:
        name: what the number is, in a few words.
        predicted: by the theory; a bound where the relation is ≤ or ≥.
        measured: by the run.
        tolerance: how far `measured` may be from `predicted` (on the wrong side of it, for a bound), ≥ 0.
        relation: what measured must be of predicted.
        relative: the tolerance is a share of |predicted|.

    Example:
        >>> check = Check("σ_1 after training", 2.9, 2.9004, 1e-3)
        >>> check.holds, Check("bulk's movement", 0.0, 1e-3, 1e-12, "≤").holds
        (True, False)
    """

    name: str
    predicted: float
    measured: float
    tolerance: float = 0.0
    relation: Relation = "="
    relative: bool = False

    def __post_init__(self) -> None:
        if not self.tolerance >= 0 or not math.isfinite(self.predicted):
            raise ValueError(f"check {self.name!r} needs a finite prediction and a tolerance ≥ 0, got {self}")

    @property
    def holds(self) -> bool:
        """Whether the measured number agrees; one that is NaN or infinite never does."""
        slack = self.tolerance * (abs(self.predicted) if self.relative else 1.0)
        excess = self.measured - self.predicted
        if not math.isfinite(excess):
            return False
        return {"=": abs(excess), "≤": excess, "≥": -excess}[self.relation] <= slack


@dataclass(frozen=True)
class Line:
    """One curve of a panel: its label, its points, and whether it is a line, a dashed line (theory) or points."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: Literal["line", "dashed", "points"] = "line"


@dataclass(frozen=True)
class Panel:
    """One plot of a claim's figure, as data; `log` names its logarithmic axes ("", "x", "y" or "xy")."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    log: Literal["", "x", "y", "xy"] = ""


@dataclass(frozen=True)
class Result:
    """What a run gave: its checks, its figure, and a note on what the numbers say (and where the claim stops).

    Example:
        >>> result = Result([Check("rank", 6, 6)], [Panel("", "t", "σ", [Line("σ_1", [0, 1], [0.0, 2.0])])])
        >>> result.holds, Result.from_json(result.to_json()) == result
        (True, True)
    """

    checks: Sequence[Check]
    panels: Sequence[Panel]
    note: str = ""

    def __post_init__(self) -> None:
        if not self.checks:
            raise ValueError("a result without checks can't fail; give at least one Check")

    @property
    def holds(self) -> bool:
        """Whether every check holds."""
        return all(check.holds for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """As plain data: dicts, lists, strings, numbers (a number that is not finite becomes a string)."""
        return {**_plain(asdict(self)), "holds": self.holds}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Result":
        """The result that `to_json` wrote."""
        checks = [Check(**{**check, "measured": float(check["measured"])}) for check in data["checks"]]
        panels = [Panel(**{**panel, "lines": [_line(line) for line in panel["lines"]]}) for panel in data["panels"]]
        return cls(checks, panels, data["note"])


@dataclass(frozen=True)
class Claim:
    """One statement of the overview and how to run it.

    Args:
        id: "T1", "C4", "D2", as the docs and the command line call it.
        title: a few words.
        statement: the claim in one sentence.
        source: paper and theorem, with its arXiv id; say so where we derived it ourselves.
        half: "dynamics" (low rank at every step), "convergence" (low rank at the end), or "data" (on real data).
        regime: where it holds, and where it is known to stop; empty if it always holds.
        run: (seed, size, *, progress=None, …) → Result. Keyword arguments after progress are the claim's ingredients
            (a recursion, an exponent, an activation); their defaults make it true, and the tests break it with others.
        resumable: `run` also takes folder=, a Path where it keeps its state, and goes on from there.
        parallel: its matrices are large enough for more than one thread (`threads`).
    """

    id: str
    title: str
    statement: str
    source: str
    half: Literal["dynamics", "convergence", "data"]
    run: Callable[..., Result]
    regime: str = ""
    resumable: bool = False
    parallel: bool = False


def _line(data: dict[str, Any]) -> Line:
    return Line(**{**data, "x": [float(v) for v in data["x"]], "y": [float(v) for v in data["y"]]})


def _plain(value: Any) -> Any:
    """Sequences, arrays and tensors to lists and numbers of Python, numbers that JSON lacks to strings."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    number = float(value)
    return number if math.isfinite(number) else str(number)
