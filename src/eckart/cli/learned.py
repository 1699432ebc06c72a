"""What fine-tuning or training learned, as a table in the terminal: a line for each kind of matrix."""

from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from eckart.lm.finetuned import Finetuned, Learned
    from eckart.lm.trained import Trained


def render(done: "Finetuned", *, console: Console | None = None) -> None:
    """Print what was adapted, what was learned of each kind of matrix, and what it was good for.

    Args:
        done: What `finetune` returned.
        console: Where to print; None prints to stdout.
    """
    console = console or Console()
    console.print(str(done.adaptation), highlight=False, markup=False, soft_wrap=True)
    console.print(spectra_table(done.learned))
    used, given = sum(done.ranks().values()), sum(each.rank for each in done.learned)
    memory = f"{done.memory / 2**30:.2f} GiB at the peak"
    for line in (
        f"Perplexity {done.before:.2f} → {done.after:.2f} on {done.measured_on}.",
        f"{done.steps} steps in {done.seconds:.0f} s, {memory}.",
        f"Of {given} directions, {used} hold 99 % of what was learned of each matrix; the others could be cut.",
        *(f"Note: {note}." for note in done.notes),
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def render_training(done: "Trained", *, console: Console | None = None) -> None:
    """Print what was trained, what was learned of each kind of matrix, what it was good for and what it took.

    Args:
        done: What `train` returned.
        console: Where to print; None prints to stdout.
    """
    console = console or Console()
    console.print(spectra_table(done.learned))
    from eckart.optim.budget.measuring import in_units

    memory, ranks = done.memory, list(done.ranks.values())
    share = f" ({memory.states / memory.adamw:.0%})" if memory.adamw else ""
    for line in (
        f"{done.method} on {len(ranks)} matrices of rank {_span(ranks)}, AdamW on the rest: {done.parameters:,} "
        "parameters train.",
        f"Perplexity {done.before:.2f} → {done.after:.2f} on {done.measured_on}.",
        f"{done.steps} steps in {done.seconds:.0f} s, {done.step_seconds:.2f} s each. {_noted(done.telemetry)}",
        f"Optimizer states {in_units(memory.states)}; AdamW's, in the weights' type, {in_units(memory.adamw)}{share}. "
        f"Weights {in_units(memory.weights)}; {in_units(memory.peak)} at the peak.",
        *(f"Note: {note}." for note in done.notes),
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _noted(telemetry: "dict[str, dict[str, float]]") -> str:
    """Refreshes and captured energy in words."""
    refreshes = [each["refreshes"] for each in telemetry.values()]
    captured = [each["captured_after"] for each in telemetry.values() if "captured_after" in each]
    if not refreshes:
        return ""
    held = f", the last holding {median(captured):.0%} of a gradient's energy (median)" if captured else ""
    times = (
        f"{min(refreshes):.0f}" if min(refreshes) == max(refreshes) else f"{min(refreshes):.0f} – {max(refreshes):.0f}"
    )
    return f"Subspaces were renewed {times} times{held}."


def spectra_table(learned: "list[Learned]") -> Table:
    """The spectra of what was learned: medians over the layers of a kind."""
    from eckart.nn import locate

    table = Table(
        title="what was learned, ΔW: effective rank, ranks that hold 90 % and 99 % of it, size", title_justify="left"
    )
    table.add_column("matrix", no_wrap=True)
    for head in ("m × n", "rank", "eff.", "90 %", "99 %", "ΔW/W"):
        table.add_column(head, justify="right", no_wrap=True)
    kinds: dict[tuple[str, tuple[int, int]], list[Learned]] = {}
    for each in learned:
        kinds.setdefault((locate(each.name)[1], each.shape), []).append(each)
    for (kind, (m, n)), members in kinds.items():
        table.add_row(
            kind if len(members) == 1 else f"{kind}  × {len(members)}",
            f"{m} × {n}",
            _span([each.rank for each in members]),
            f"{median(each.effective_rank for each in members):.1f}",
            f"{median(each.rank_90 for each in members):.0f}",
            f"{median(each.rank_99 for each in members):.0f}",
            f"{median(each.relative for each in members):.4f}",
        )
    return table


def _span(values: list[int]) -> str:
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)} – {max(values)}"
