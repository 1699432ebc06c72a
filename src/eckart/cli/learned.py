"""What fine-tuning learned, as a table in the terminal: a line for each kind of matrix."""

from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from eckart.lm.finetuned import Finetuned, Learned


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
