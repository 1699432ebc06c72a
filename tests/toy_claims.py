"""Claims that take no time, for the tests of what runs, keeps and draws claims."""

import math
from pathlib import Path
from typing import Any

import torch

from eckart.claims import Check, Claim, Line, Panel, Result

STEPS = range(50)
HOSTILE = "</section><img src=x onerror=alert(1)>&\"'"
RUNS: list[str] = []  # the ids of what ran, in order


def holding(seed: int, size: str, *, progress: Any = None) -> Result:
    """Holds, with two panels, numbers of torch, and draws from the generator that modules draw from."""
    RUNS.append("T1")
    for step in (1, 2, 3, 4):
        if progress:
            progress(step, 4, "descent")
    drawn = torch.rand(()).item()
    growth = [2 * (1 - math.exp(-t / 10)) for t in STEPS]
    lines = [Line("σ₁", STEPS, torch.tensor(growth)), Line("theory", STEPS, growth, "dashed")]
    points = [Line(f"{HOSTILE}{i}", [1, 2, 3], [seed + i, 2.0, math.nan], "points") for i in range(8)]
    checks = [Check("σ₁", 2.0, torch.tensor(2.0), 1e-3, relative=True), Check("drawn", 0.5, drawn, 0.5)]
    panels = [Panel("Growth", "step t", "σ", lines), Panel("Points", "L", "y", points, "y")]
    return Result(checks, panels, f"Size {size}. {HOSTILE}")


def failing(seed: int, size: str, *, progress: Any = None) -> Result:
    RUNS.append("C1")
    return Result([Check("slope", -1.0, -0.4, 0.1), Check("bound", 1.0, 0.5, 0.0, "≤")], [])


def raising(seed: int, size: str, *, progress: Any = None) -> Result:
    RUNS.append("D1")
    raise RuntimeError("there are no digits")


def stopping(seed: int, size: str, *, progress: Any = None, folder: Path | None = None) -> Result:
    """Is interrupted at its first run, and goes on from its state at the second."""
    RUNS.append("D2")
    assert folder is not None
    state = folder / "state.txt"
    if not state.exists():
        state.write_text("half")
        raise KeyboardInterrupt
    return Result([Check("went on", 1.0, float(state.read_text() == "half"))], [])


TRUE = Claim("T1", "Growth", "σ₁ grows to 2.", "arXiv 2306.01154, Theorem 1", "dynamics", holding, "Without noise.")
FALSE = Claim("C1", f"Slope {HOSTILE}", "The slope is −1.", "arXiv 2503.19859; derived here", "convergence", failing)
BROKEN = Claim("D1", "Digits", "Digits are low-rank.", "arXiv 2503.19859", "data", raising)
LONG = Claim("D2", "Long", "A long run goes on.", "arXiv 2503.19859", "data", stopping, resumable=True)
TOYS = (TRUE, FALSE, BROKEN)
