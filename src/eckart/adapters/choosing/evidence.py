"""What `rank="auto"` measured, in a few lines: for each kind of matrix its ranks and its part of the decrease."""

from collections.abc import Mapping, Sequence
from typing import Any

from eckart.nn import locate

NUMBERS = ("rank", "parameters", "energy", "captured", "captured_by_uniform")  # of each matrix


def evidence_lines(evidence: Mapping[str, Any] | None) -> list[str]:
    """The lines; none where the ranks were not chosen by gradients, or a file does not tell it in numbers.

    Example:
        >>> one = {"rank": 3, "parameters": 24, "energy": 9.0, "agreement": 0.5, "captured": 0.8}
        >>> other = {"rank": 0, "parameters": 0, "energy": 1.0, "agreement": 0.1, "captured": 0.0}
        >>> rows = {"0.q": one | {"captured_by_uniform": 0.5}, "1.q": other | {"captured_by_uniform": 0.4}}
        >>> print(*evidence_lines(rows), sep="\\n")
        rank="auto": 24 parameters reach 72 % of the first-order decrease, one rank for all would reach 49 %
          kind  ranks   mean  adapted  share of the decrease
          q     0 to 3   1.5   1 of 2  100 %
    """
    if not evidence or not all(map(_is_row, evidence.values())):
        return []
    rows = list(evidence.values())
    total = sum(each["energy"] for each in rows) or 1.0
    ours, alike = (
        sum(each["energy"] * each[key] for each in rows) / total for key in ("captured", "captured_by_uniform")
    )
    spent = sum(each["parameters"] for each in rows)
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for name, each in evidence.items():
        kinds.setdefault(locate(name)[1], []).append(each)
    width = max(map(len, [*kinds, "kind"]))
    lines = [
        f'rank="auto": {spent:,} parameters reach {100 * ours:.0f} % of the first-order decrease, one rank for all '
        f"would reach {100 * alike:.0f} %",
        f"  {'kind':{width}}  ranks   mean  adapted  share of the decrease",
    ]
    return lines + [_line(kind, width, each, total) for kind, each in kinds.items()]


def _is_row(each: object) -> bool:
    return isinstance(each, Mapping) and all(isinstance(each.get(key), int | float) for key in NUMBERS)


def _line(kind: str, width: int, rows: Sequence[Mapping[str, Any]], total: float) -> str:
    ranks = [each["rank"] for each in rows]
    span = f"{min(ranks)} to {max(ranks)}"
    adapted = f"{sum(r > 0 for r in ranks)} of {len(ranks)}"
    share = 100 * sum(each["energy"] for each in rows) / total
    return f"  {kind:{width}}  {span:7} {sum(ranks) / len(ranks):4.1f}  {adapted:>7}  {share:.0f} %"
