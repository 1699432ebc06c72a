"""What layers read in a model and in its changed twin, row by row together: the moments of an anchored fit.

For rows x (n,) of a layer's input in the model and x̂ (n,) of the same layer's input in the twin, over the same N
tokens: C = Σ x̂ x̂ᵀ / N and M = Σ x x̂ᵀ / N (n, n). Layers that are given the very same tensor share them.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eckart.linalg import add_gram, symmetrize
from eckart.nn.batches import Padding
from eckart.nn.blocks import Enough
from eckart.nn.modes import evaluating


@dataclass
class Crossed:
    """The moments of one layer's inputs in both models; float32, or float64 for float64 inputs."""

    tokens: int
    covariance: Tensor  # (n, n) Σ x̂ x̂ᵀ / tokens
    cross: Tensor  # (n, n) Σ x x̂ᵀ / tokens


class _Sums:
    def __init__(self, like: Tensor) -> None:
        n = like.shape[-1]
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        zeros = torch.zeros((), dtype=dtype, device=like.device).new_zeros
        self.count, self.C, self.M = 0, zeros(n, n), zeros(n, n)

    def add(self, x: Tensor, y: Tensor) -> None:  # (N, n) of the model, of the twin
        x, y = x.to(self.C.dtype), y.to(self.C.dtype)
        add_gram(self.C[None], y[None])
        self.M.addmm_(x.T, y)
        self.count += len(x)

    def crossed(self) -> Crossed:
        N = max(1, self.count)
        return Crossed(self.count, symmetrize(self.C) / N, self.M / N)


@torch.no_grad()
def observe_crossed(
    model: nn.Module,
    twin: nn.Module,
    names: Sequence[str],
    runs: Iterable[tuple[Callable[[nn.Module], Any], Callable[[nn.Module], Any], Padding]],
) -> dict[str, Crossed]:
    """Observe the inputs of layers in a model and in its changed twin.

    Args:
        model: The model as it was; run in evaluation mode, only as far as the last of the layers.
        twin: The changed one, with modules of the same names; likewise.
        names: Layers that are called as modules with a tensor (Linear, transformers' Conv1D, and what replaced them).
        runs: For each batch: what runs the model, what runs the twin, and which rows are padding.

    Returns:
        Layer → moments; layers that no batch reaches in both models are left out.

    Raises:
        ValueError: an input is not finite (the layer is named).

    Example:
        >>> model, twin = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
        >>> x = torch.eye(2)
        >>> seen = observe_crossed(model, twin, ["0"], [(lambda m: m(x), lambda m: m(2 * x), Padding(x))])
        >>> seen["0"].cross
        tensor([[1., 0.],
                [0., 1.]])
    """
    sums: dict[str, _Sums] = {}
    first: dict[str, str] = {}  # layer → the first of those that read the same tensors, as far as is known
    for run, run_twin, padding in runs:
        with evaluating(model), evaluating(twin):
            read, changed = _inputs(model, names, run), _inputs(twin, names, run_twin)
        heads: dict[tuple[int, int], str] = {}
        for name in (each for each in names if each in read and each in changed):
            x, y = read[name], changed[name]
            head = heads.setdefault((id(x), id(y)), name)
            if first.setdefault(name, head) != head:
                raise ValueError(f"{name} reads what {first[name]} reads in some batches only: give them apart")
            if head == name:
                sums.setdefault(name, _Sums(y)).add(padding.rows(x), padding.rows(y))
    seen = {name: each.crossed() for name, each in sums.items()}
    for name, each in seen.items():
        if not bool(each.covariance.sum().isfinite() & each.cross.sum().isfinite()):
            raise ValueError(f"the input of {name} has values that are not finite: run the model in a wider dtype")
    return {name: seen[head] for name, head in first.items()}


@torch.no_grad()
def call_order(model: nn.Module, names: Sequence[str], run: Callable[[nn.Module], Any]) -> list[list[str]]:
    """The layers in the order in which a run calls them, those that are given the very same tensor together.

    Args:
        model: Run in evaluation mode.
        names: Layers, as `observe_crossed` takes them; one that the run does not reach is left out.
        run: What runs the model.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> call_order(model, ["2", "0"], lambda model: model(torch.eye(2)))
        [['0'], ['2']]
    """
    with evaluating(model):
        given = _inputs(model, names, run)
    groups: dict[int, list[str]] = {}
    for name, x in given.items():
        groups.setdefault(id(x), []).append(name)
    return list(groups.values())


def _inputs(model: nn.Module, names: Sequence[str], run: Callable[[nn.Module], Any]) -> dict[str, Tensor]:
    """What each layer is given, in a run that ends at the last of them."""
    given: dict[str, Tensor] = {}

    def watch(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            given[name] = args[0]
            if len(given) == len(names):
                raise Enough

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    try:
        with suppress(Enough):
            run(model)
    finally:
        for hook in hooks:
            hook.remove()
    return given
