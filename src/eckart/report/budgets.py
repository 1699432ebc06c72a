"""What a profile suggests at several budgets: the ranks, and what they keep."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import TYPE_CHECKING, Any

from eckart.linalg import rank_cost
from eckart.spectra.profile import RANKED

if TYPE_CHECKING:
    from eckart.spectra import Profile


@dataclass(frozen=True)
class Choice:
    """The ranks that a profile suggests at one budget.

    Attributes:
        budget: kept share of the parameters of the matrices that were chosen.
        ranks: name → rank; empty where the profile cannot say.
        parameters: stored numbers of the factors and of the matrices kept dense.
        share: `parameters` ÷ those of the same matrices kept dense.
        dense: how many matrices stay dense.
        energy: mean over the matrices of the kept share of the energy, None where not every value is known.
        kinds: kind → (lowest, median, highest) suggested rank.
        reason: why there are no ranks, or "".
    """

    budget: float
    ranks: dict[str, int]
    parameters: int = 0
    share: float = 0.0
    dense: int = 0
    energy: float | None = None
    kinds: dict[str, tuple[int, int, int]] | None = None
    reason: str = ""


def source(profile: "Profile") -> str:
    """Which measurement the suggested ranks come from: the first held that ranks can be chosen from, else the first."""
    return next((of for of in profile.kinds if of in RANKED), profile.kinds[0])


def choices(profile: "Profile", budgets: Sequence[float]) -> list[Choice]:
    """Ask the profile for its ranks at each budget; a budget that it cannot meet carries the reason.

    Args:
        profile: what `eckart.measure` returned.
        budgets: kept shares of the parameters, each in (0, 1].

    Returns:
        One `Choice` for each budget, in their order.
    """
    found = []
    for budget in budgets:
        try:
            found.append(_choice(profile, budget, profile.suggest_ranks(budget)))
        except ValueError as error:
            found.append(Choice(budget, {}, reason=str(error)))
    return found


def _choice(profile: "Profile", budget: float, ranks: dict[str, int]) -> Choice:
    of = source(profile)
    rows = {row["name"]: row for row in profile.rows(of) if row["name"] in ranks}
    entries = {entry.name: entry for entry in profile.entries if entry.of == of and entry.name in ranks}
    costs = {name: rank_cost(ranks[name], entry.shape) for name, entry in entries.items()}
    whole = sum(entry.shape[0] * entry.shape[1] for entry in entries.values())
    dense = [name for name, entry in entries.items() if ranks[name] >= min(entry.shape)]
    kept = [_kept(entry, ranks[name]) for name, entry in entries.items()]
    known = [share for share in kept if share is not None]
    return Choice(
        budget,
        ranks,
        parameters=sum(costs.values()),
        share=sum(costs.values()) / whole,
        dense=len(dense),
        energy=sum(known) / len(known) if len(known) == len(kept) else None,
        kinds=_by_kind(rows, ranks),
    )


def _kept(entry: Any, rank: int) -> float | None:
    if rank >= min(entry.shape) or not entry.energy:  # a zero matrix loses nothing
        return 1.0
    return float(entry.values[:rank].square().sum()) / entry.energy if rank <= len(entry.values) else None


def _by_kind(rows: dict[str, dict[str, Any]], ranks: dict[str, int]) -> dict[str, tuple[int, int, int]]:
    groups: dict[str, list[int]] = {}
    for name, row in rows.items():
        groups.setdefault(row["kind"], []).append(ranks[name])
    return {kind: (min(group), median_low(group), max(group)) for kind, group in groups.items()}
