"""How long, how fast and in which portions to train, and what a method does with its rank meanwhile."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from eckart.adapters.layers.place import adapters
from eckart.lm.pruning_callback import PruneTriplets
from eckart.lm.restart_callback import Restarts


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long, how fast and in which portions to train; see `finetune` and `train`."""

    steps: int | None
    epochs: float
    lr: float
    batch: int
    accumulate: int
    seed: int
    save_every: int | None

    def __post_init__(self) -> None:
        for key, value in asdict(self).items():
            if key != "seed" and value is not None and not value > 0:
                raise ValueError(f"{key}: {value}; give a positive number")

    def total(self, sequences: int, processes: int) -> int:
        """Optimizer steps of the whole run."""
        batches = math.ceil(sequences / (self.batch * processes))
        return self.steps or math.ceil(self.epochs * math.ceil(batches / self.accumulate))

    def to_json(self) -> dict[str, Any]:
        """What must be the same where a run goes on; checkpoints may come more or less often."""
        return {key: value for key, value in asdict(self).items() if key != "save_every"}


@dataclass(frozen=True, kw_only=True)
class AdapterSchedule(Schedule):
    """And what is of adapters alone; see `finetune`."""

    plus: float
    final_rank: float | None
    restart_every: int | None


def rank_rule(model: nn.Module, name: str, plan: AdapterSchedule, total: int) -> PruneTriplets | Restarts | None:
    """What an adapter's method does with its rank while it trains for so many steps.

    Raises:
        ValueError: The plan says something of a rule that is not the method's.
    """
    settings = next(adapter.settings for _, adapter in adapters(model, name))
    for key, method in {"final_rank": "adalora", "restart_every": "relora"}.items():
        if getattr(plan, key) is not None and settings.method != method:
            raise ValueError(f"{key}: {getattr(plan, key)}; it is for {method}, and this is {settings.method}")
    if settings.method == "adalora":
        mean = sum(settings.ranks.values()) / len(settings.ranks)
        return PruneTriplets(model, steps=total, target=plan.final_rank or max(1.0, mean * 2 / 3), name=name)
    if settings.method == "relora":
        return Restarts(plan.restart_every or math.ceil(total / 4), name)
    return None
