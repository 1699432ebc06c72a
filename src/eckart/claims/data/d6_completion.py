"""D6: on a real matrix with most of its entries hidden, deep completion has a lower error than a tuned softImpute."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from eckart.claims.claim import Check, Claim, Line, Panel, Result
from eckart.claims.data._digits import all_digits
from eckart.nn import Progress
from eckart.theory import Completion, Imputation, complete_matrix, tuned_soft_impute


class Size(NamedTuple):
    """Rows of the digits that are taken, the ranks that softImpute may choose from, and the shares that are hidden.

    The first of the shares is the claim's; `rank` is the deep factorisation's.
    """

    rows: int
    ranks: tuple[int | None, ...]
    hidden: tuple[float, ...]
    rank: int = 20


SIZES = {
    "small": Size(600, (10, None), (0.7, 0.5)),
    "paper": Size(1797, (8, 10, 12, 16, None), (0.7, 0.3, 0.5, 0.8)),
}


class Errors(NamedTuple):
    """Root mean square errors on the hidden entries, in grey levels from 0 to 16, and what was chosen."""

    mean: float
    soft: float
    deep: float
    chosen: tuple[Imputation, Completion]


def run(
    seed: int,
    size: str,
    *,
    progress: Progress | None = None,
    complete: Callable[..., Completion] = complete_matrix,
) -> Result:
    """Hide entries of scikit-learn's digits at random, and complete the matrix both ways.

    Args:
        seed: of the rows, the entries that are hidden, and those that each method holds out to choose on.
        size: a key of `SIZES`.
        progress: called with (done, total, label).
        complete: the deep completion, as `complete_matrix`.
    """
    s = SIZES[size]
    images, _ = all_digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    data = 16 * images[order[: s.rows]].float()  # grey levels
    found = {}
    for index, hidden in enumerate(s.hidden):
        if progress is not None:
            progress(index, len(s.hidden), f"{hidden:.0%} hidden")
        found[hidden] = _compare(data, hidden, s, seed, complete)
    if progress is not None:
        progress(len(s.hidden), len(s.hidden), "done")
    first = found[s.hidden[0]]
    checks = [
        Check(f"{s.hidden[0]:.0%} hidden: error of deep completion, at most softImpute's", first.soft, first.deep,
              relation="≤"),
        Check(f"{s.hidden[0]:.0%} hidden: error of softImpute, at most the columns' means'", first.mean, first.soft,
              relation="≤"),
    ]  # fmt: skip
    return Result(checks, [_panel(found), _chosen(first)], _note(s, found))


def _compare(data: Tensor, hidden: float, s: Size, seed: int, complete: Callable[..., Completion]) -> Errors:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(data.shape, generator=generator) >= hidden
    held = [torch.Generator().manual_seed(seed) for _ in range(2)]  # both choose on the same entries
    soft = tuned_soft_impute(data, mask, ranks=s.ranks, generator=held[0])
    deep = complete(data, mask, s.rank, generator=held[1])

    def error(matrix: Tensor) -> float:
        return float((matrix - data)[~mask].square().mean().sqrt())

    return Errors(error(deep.mean.expand_as(data)), error(soft.matrix), error(deep.matrix), (soft, deep))


def _panel(found: dict[float, Errors]) -> Panel:
    hidden = sorted(found)
    percent = [100 * each for each in hidden]
    lines = [
        Line("columns' means", percent, [found[each].mean for each in hidden]),
        Line("softImpute, tuned", percent, [found[each].soft for each in hidden]),
        Line("deep completion", percent, [found[each].deep for each in hidden]),
    ]
    return Panel("Digits with hidden entries", "entries hidden (%)", "error on them (grey levels of 16)", lines)


def _chosen(errors: Errors) -> Panel:
    deep = errors.chosen[1]
    steps = [10.0 * index for index in range(len(deep.errors))]
    return Panel(
        "Early stopping on held-out entries",
        "step",
        "held-out error (1: the column's mean)",
        [Line(f"decay {deep.phases[0][0]:g}", steps, deep.errors)],
    )


def _note(s: Size, found: dict[float, Errors]) -> str:
    first = found[s.hidden[0]]
    soft, deep = first.chosen
    return (
        f"With {s.hidden[0]:.0%} of the entries of {s.rows} digits hidden, deep completion of width {2 * s.rank} errs "
        f"by {first.deep:.3f} grey levels, softImpute by {first.soft:.3f}, which is {first.soft / first.deep - 1:.1%} "
        f"more, with its best shrinkage, {soft.share:.2f} of the largest, and rank, {soft.rank}; the columns' means by "
        f"{first.mean:.3f}. Both standardise the columns and choose on the same held-out tenth; deep completion chose "
        f"decay {deep.phases[0][0]:g} and {deep.phases[0][1]} steps."
    )


CLAIM = Claim(
    id="D6",
    title="Deep completion of a real matrix",
    statement=(
        "With 70 % of the entries of scikit-learn's digits hidden, a compressed deep factorisation with early stopping "
        "and decay completes the matrix with a lower error than a tuned softImpute."
    ),
    source="ours, after Yaras et al., arXiv 2406.04112, and Mazumder et al., JMLR 11 (2010)",
    half="data",
    regime="Data of low rank plus noise; where noise drowns nearly all of it, softImpute's shrinkage is safer.",
    run=run,
)
