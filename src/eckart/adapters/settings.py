"""What an adapter was made with: the answers on each axis, kept in its files, plain data that goes through JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Settings:
    """One object for all layers of one named adapter.

    Args:
        method: The row of `METHODS`.
        ranks: Matrix name → rank.
        alpha: α; None is twice the rank of each matrix.
        scaling: "alpha/r", "alpha/sqrt(r)" or "none".
        dropout: Share of the entries of the inputs that the low-rank path drops while training.
        trains: Names of the factors that train; empty for all.
        modules_to_save: Names of modules trained whole.
        options: What the method alone knows.
        evidence: Why these ranks and targets: matrix name → what was measured. None where the caller chose.
        base: What the model was: class, number of matrices, name.
        scaled_as: The one rank that α is meant for, where a rule gave each matrix another; None: each its own.

    Example:
        >>> Settings("lora", {"q": 8}, alpha=16.0).scale(8), Settings("lora", {"q": 8}).scale(64)
        (2.0, 2.0)
    """

    method: str
    ranks: dict[str, int]
    alpha: float | None = None
    scaling: str = "alpha/r"
    dropout: float = 0.0
    trains: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    evidence: dict[str, Any] | None = None
    base: dict[str, Any] = field(default_factory=dict)
    scaled_as: int | None = None

    def scale(self, rank: int) -> float:
        """s for a matrix of this rank."""
        rank = rank if self.scaled_as is None else self.scaled_as
        alpha = 2 * rank if self.alpha is None else self.alpha
        return {"alpha/r": alpha / rank, "alpha/sqrt(r)": alpha / rank**0.5, "none": 1.0}[self.scaling]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)
