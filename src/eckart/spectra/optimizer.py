"""The state of an optimizer: the spectra of its moment matrices (Adam's exp_avg and exp_avg_sq, a momentum buffer)."""

from torch import Tensor, nn
from torch.optim import Optimizer

from eckart.nn import Matrix, Patterns, Progress, matrices

from .entry import Entry
from .spectrum import Source, entry_of, measure_all


def measure_optimizer(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    mode: str,
    targets: Patterns = None,
    exclude: Patterns = None,
    progress: Progress | None = None,
) -> list[Entry]:
    """The spectrum of every state tensor that has the shape of a matrix of `model`.

    Entries are named `matrix:state`, for instance `layers.0.fc1:exp_avg`.

    Raises:
        ValueError: The optimizer holds no such state (it has not stepped yet, or holds another model's parameters).
    """
    sources = [
        source
        for matrix in matrices(model, targets, exclude)
        for key, value in optimizer.state.get(getattr(matrix.module, matrix.parameter), {}).items()
        for source in _state_sources(matrix, key, value)
    ]
    if not sources:
        raise ValueError(
            "optimizer holds no state for the selected matrices; "
            "call it after the first optimizer.step(), with the model that it trains"
        )
    return measure_all(
        sources,
        lambda s: entry_of(s.read(), name=s.name, of="optimizer", mode=mode, extra=s.extra),
        progress=progress,
    )


def _state_sources(matrix: Matrix, key: str, value: object) -> list[Source]:
    parameter = getattr(matrix.module, matrix.parameter)
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return []
    return [
        Source(f"{name}:{key}", matrix.shape, state.detach, {"state": key}) for name, state in matrix.members(value)
    ]
