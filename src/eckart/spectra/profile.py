"""A profile: the spectra of a model's matrices, the numbers drawn from them, and the choice of ranks they suggest."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from eckart import linalg
from eckart.nn import Patterns, locate
from eckart.nn.files import atomic_directory, read_json, save_safetensors, write_json
from eckart.nn.patterns import select

from .comparison import compare
from .entry import Entry
from .rows import row

SPECTRA = "spectra.safetensors"
INDEX = "profile.json"
VERSION = 2
RANKED = ("weights", "updates", "gradients")
"""What has the shape of a matrix of the model, so that a rank for it means something."""


@dataclass(frozen=True, eq=False)
class Profile:
    """The spectra of the matrices of one model.

    Attributes:
        entries: One for each measured matrix, in the order of the model.
        mode: "full" (every singular value) or "fast" (the largest 16 and the exact energy).
        source: What was measured: a name, a path, a class.
        details: How it was measured: versions, tokens, what was left out and why.

    Example:
        >>> import torch, eckart
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4, bias=False))
        >>> _ = torch.nn.init.eye_(model[0].weight)
        >>> profile = eckart.measure(model)
        >>> [(r["name"], r["stable_rank"]) for r in profile.rows()]
        [('0', 4.0)]
    """

    entries: list[Entry]
    mode: str
    source: str
    details: dict[str, Any] = field(default_factory=dict)

    def rows(self, of: str | None = None) -> list[dict[str, Any]]:
        """One dict for each matrix: its name, place, and statistics.

        Args:
            of: Only what was measured of this ("weights", "updates", "gradients", "activations", "optimizer").

        Returns:
            Dicts whose values are numbers, None (unknown), or (low, high) where only an interval is known.
        """
        return [dict(r) for r in self._rows if of in (None, r["of"])]

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        return list(linalg.map_side_by_side(row, self.entries))

    @property
    def kinds(self) -> list[str]:
        """What was measured, in order: a part of weights, updates, gradients, activations, optimizer."""
        return list(dict.fromkeys(entry.of for entry in self.entries))

    def suggest_ranks(
        self,
        budget: float,
        *,
        of: str | None = None,
        targets: Patterns = None,
        exclude: Patterns = None,
        cost: str = "factors",
        dense: bool = True,
        weights: Mapping[str, float] | None = None,
        floor: Mapping[str, int] | int = 0,
        ceiling: Mapping[str, int] | int | None = None,
        multiple: int = 1,
    ) -> dict[str, int]:
        """The ranks that lose least of the measured energy within a parameter budget.

        Each matrix's energy counts relative to its own total, times its weight. Without `targets`, matrices outside
        the numbered blocks (embeddings, heads) are left out wherever the model has such blocks. A matrix that is zero
        gets rank 0.

        Args:
            budget: Parameters of the factors ÷ parameters of the selected matrices, in (0, 1].
            of: Which spectra to use: "weights", "updates" or "gradients"; None takes the first that the profile holds.
            targets: Patterns of the matrices to choose ranks for.
            exclude: Patterns of those to leave out.
            cost: "factors", r(m+n) parameters, or "pivoted", r(m+n−r).
            dense: Let a matrix stay dense, rank min(m, n), at its own mn parameters. False for adapters, whose
                factors are added to the model.
            weights: Importance of each matrix, name → factor; 1 where absent.
            floor: The least rank, one for all or name → rank.
            ceiling: The largest rank, likewise; None for no limit.
            multiple: Ranks are multiples of this, but for dense ones and floors.

        Returns:
            Name → rank; min(m, n) means that the matrix stays dense. Members of a stack are named `stack[index]`.

        Raises:
            ValueError: The budget is outside (0, 1] or below the floors, a name is unknown, the profile holds no
                spectra of the model's matrices, or the choice needs values that `fast` mode did not compute (it
                knows enough for adapters: `dense=False, cost="factors"`, ranks below 16).

        Example:
            >>> import torch, eckart
            >>> flat, steep = (torch.nn.Linear(8, 8, bias=False) for _ in range(2))
            >>> _ = torch.nn.init.eye_(flat.weight)
            >>> steep.weight.data = torch.diag(torch.tensor([1.0, 1.0] + [0.0] * 6))
            >>> eckart.measure(torch.nn.Sequential(flat, steep)).suggest_ranks(0.75)
            {'0': 8, '1': 2}
        """
        if not 0 < budget <= 1:
            raise ValueError(f"budget must be in (0, 1], the kept share of the parameters, got {budget}")
        chosen = self._select(of, targets, exclude)
        if unknown := sorted(set(weights or {}) - {e.name for e in chosen}):
            raise ValueError(f"weights names {unknown[:3]}, which are not among the {len(chosen)} selected matrices")
        moving = [e for e in chosen if e.energy]
        ranks = linalg.allocate(
            {e.name: e.values for e in moving},
            {e.name: e.shape for e in moving},
            budget * sum(e.shape[0] * e.shape[1] for e in chosen),
            cost=cost,
            weights={e.name: (weights or {}).get(e.name, 1.0) / e.energy for e in moving},
            floor=floor,
            ceiling=ceiling,
            multiple=multiple,
            dense=dense,
        )
        for entry in moving:
            if not entry.complete and (dense or cost != "factors" or ranks[entry.name] >= len(entry.values)):
                raise ValueError(
                    f"{entry.name}: the choice depends on more than the {len(entry.values)} singular values that fast "
                    "mode computes; measure with mode='full' (without --fast), or choose adapter ranks (dense=False)"
                )
        return {e.name: ranks.get(e.name, 0) for e in chosen}

    def _select(self, of: str | None, targets: Patterns, exclude: Patterns) -> list[Entry]:
        held = [kind for kind in self.kinds if kind in RANKED]
        of = of or next(iter(held), None)
        if of not in held:
            raise ValueError(f"ranks are chosen from one of {RANKED}; of={of!r}, and the profile holds {self.kinds}")
        entries = {e.name: e for e in self.entries if e.of == of}
        names = select(list(entries), targets, exclude)
        blocks = [name for name in names if locate(name)[0] is not None]
        chosen = [entries[name] for name in (blocks if blocks and targets is None else names)]
        if not any(e.energy for e in chosen):
            raise ValueError(f"no {of} to choose ranks for: the selected {len(chosen)} matrices are all zero")
        return chosen

    def compare(self, other: "Profile") -> list[dict[str, Any]]:
        """What changed from this profile to `other`, matrix by matrix; see `eckart.spectra.compare`."""
        return compare(self, other)

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write the profile into `folder`: spectra in safetensors, the rest in JSON.

        Raises:
            FileExistsError: The folder exists and `force` is not set.
        """
        with atomic_directory(folder, force=force, mark=INDEX) as draft:
            save_safetensors(draft / SPECTRA, {str(i): e.values for i, e in enumerate(self.entries)})
            index = [{k: v for k, v in asdict(e).items() if k != "values"} for e in self.entries]
            head = {"version": VERSION, "mode": self.mode, "source": self.source, "details": self.details}
            write_json(draft / INDEX, head | {"entries": index})
        return Path(folder)

    @staticmethod
    def load(folder: str | Path) -> "Profile":
        """Read a profile that `save` wrote.

        Raises:
            FileNotFoundError: The folder holds no profile.
            ValueError: Its files are damaged or of a version that this eckart does not know.
        """
        path = Path(folder) / INDEX
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no {INDEX}; pass a folder that Profile.save wrote")
        head = read_json(path)
        version = head.get("version") if isinstance(head, dict) else None
        if version != VERSION:
            raise ValueError(f"{path} has version {version!r}, this eckart reads {VERSION}; measure again")
        try:
            values = load_file(Path(folder) / SPECTRA)
            entries = [_entry(each, values[str(i)]) for i, each in enumerate(head["entries"])]
            return Profile(entries, head["mode"], head["source"], head["details"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder}: the profile is damaged ({error}); measure again") from error


def _entry(fields: dict[str, Any], values: Tensor) -> Entry:
    """An entry as `save` wrote it; JSON made lists of its tuples."""
    extra = {key: tuple(value) if isinstance(value, list) else value for key, value in fields["extra"].items()}
    return Entry(**{**fields, "shape": tuple(fields["shape"]), "extra": extra}, values=values)
