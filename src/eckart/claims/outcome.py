"""What became of a claim that was run: its result or its error, with all that is needed to make it again."""

from dataclasses import dataclass, field
from typing import Any, Literal

from .claim import Claim, Result

Verdict = Literal["holds", "fails", "error"]


@dataclass(frozen=True)
class Outcome:
    """A claim's result, or the error that it raised, and how it was made.

    Args:
        claim: the claim.
        seed, size: what it was run with.
        seconds: how long it ran.
        result: its result; None where it raised.
        error: what it raised, in one line; empty where it did not.
        versions: of eckart, torch and python.
        threads: that torch computed with.

    Example:
        >>> from eckart.claims import Check
        >>> claim = Claim("X1", "Halving", "Half of 3 is 1.5.", "ours", "dynamics", lambda seed, size: ...)
        >>> outcome = Outcome(claim, 0, "small", 0.1, Result([Check("half of 3", 1.5, 1.4)], []))
        >>> outcome.verdict, outcome.command
        ('fails', 'eckart claims run X1 --seed 0 --size small')
        >>> Outcome.from_json(outcome.to_json(), claim) == outcome
        True
    """

    claim: Claim
    seed: int
    size: str
    seconds: float
    result: Result | None
    error: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    threads: int = 1

    @property
    def verdict(self) -> Verdict:
        """Whether the claim holds, fails, or could not be run."""
        if self.result is None:
            return "error"
        return "holds" if self.result.holds else "fails"

    @property
    def command(self) -> str:
        """The command that makes it again."""
        return f"eckart claims run {self.claim.id} --seed {self.seed} --size {self.size}"

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "id": self.claim.id,
            "title": self.claim.title,
            "statement": self.claim.statement,
            "seed": self.seed,
            "size": self.size,
            "verdict": self.verdict,
            "seconds": self.seconds,
            "versions": self.versions,
            "threads": self.threads,
            "command": self.command,
            "error": self.error,
            "result": self.result.to_json() if self.result is not None else None,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], claim: Claim) -> "Outcome":
        """The outcome of `claim` that `to_json` wrote.

        Raises:
            ValueError: the data is no outcome of this claim.
        """
        if not isinstance(data, dict) or data.get("id") != claim.id:
            raise ValueError(f"{claim.id}: the kept result is not one of this claim; remove it, or run with --fresh")
        result = Result.from_json(data["result"]) if data["result"] is not None else None
        same = {key: data[key] for key in ("seed", "size", "seconds", "error", "versions", "threads")}
        return cls(claim, result=result, **same)
