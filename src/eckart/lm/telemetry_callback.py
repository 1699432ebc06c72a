"""What a low-rank optimizer does, layer by layer, in whatever tracker a transformers Trainer has."""

from eckart.lm.callback import SpectraCallback
from eckart.optim import LowRankOptimizer, telemetry, watch


class TelemetryCallback(SpectraCallback):
    """Log the energy that bases capture, refreshes and the lengths of updates, with the loss.

    As with `SpectraCallback`, `callback.attach(trainer)` puts it before the Trainer's trackers, which then see the
    numbers. Each is named `optimizer/<parameter>/<number>`, and the mean over the matrices `optimizer/<number>`.

    Args:
        optimizer: The one that the Trainer was given; from now on it takes notes (`eckart.optim.telemetry`).
        every: Steps between entries, at least 1; the last step is logged too.

    Raises:
        ValueError: `every` is below 1.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(8, 6, bias=False)
        >>> optimizer = LowRankOptimizer(model, rank=2)
        >>> callback = TelemetryCallback(optimizer, every=10)
        >>> model(torch.ones(1, 8)).sum().backward()  # a gradient of rank 1
        >>> optimizer.step()
        >>> round(callback.recorder.scalars()["optimizer/weight/captured_after"], 3)
        1.0
    """

    def __init__(self, optimizer: LowRankOptimizer, every: int = 50) -> None:
        super().__init__(Notes(optimizer), every)
        watch(optimizer)


class Notes:
    """An optimizer's telemetry as what `SpectraCallback` records."""

    def __init__(self, optimizer: LowRankOptimizer) -> None:
        self.optimizer = optimizer

    def step(self, t: int) -> None:
        """The optimizer notes by itself."""

    def scalars(self) -> dict[str, float]:
        """The latest numbers."""
        found = telemetry(self.optimizer)
        flat = {f"optimizer/{key}": value for key, value in means(found).items()}
        return flat | {f"optimizer/{name}/{key}": value for name, each in found.items() for key, value in each.items()}


def means(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """The mean of each number over the matrices that have it.

    Example:
        >>> means({"a": {"refreshes": 1, "update": 2.0}, "b": {"refreshes": 3}})
        {'refreshes': 2.0, 'update': 2.0}
    """
    keys = dict.fromkeys(key for each in found.values() for key in each)
    listed = {key: [each[key] for each in found.values() if key in each] for key in keys}
    return {key: sum(values) / len(values) for key, values in listed.items()}
