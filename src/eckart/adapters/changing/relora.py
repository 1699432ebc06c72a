"""ReLoRA: many low-rank updates in a row, whose sum has a higher rank than any of them.

    restart:   F ← F + B A   (stacked: F's factors grow by r columns and rows),   B ← 0,   A drawn anew,
               the optimizer's moments of A and B pruned to a small share or set to zero
    rate:      a cosine, that begins again from 0 over a few steps after every restart ("jagged cosine")

The base weight is never changed: F stays a thin product, so that adapters can still be switched, and merging or
exporting writes W + s (F + B A). The price after k restarts: each token costs 2 k r (m+n) operations more (forward, and
as much again for the gradient of the inputs), and memory k r (m+n) numbers. From k r = mn/(m+n) on, F is dearer than
the dense matrix itself; a warning says so at the restart that gets there. Merge then, and adapt the merged model.

Paper: ReLoRA 2307.05695, which merges into the weight at each restart; stacking is ours. Its text prunes 99 % of the
moments by magnitude, the default here.
"""

import math
import warnings

import torch
from torch import Tensor, nn

from eckart.adapters.adapter import Adapter
from eckart.adapters.changing.swapping import shaped_states
from eckart.adapters.layers.place import adapters
from eckart.adapters.shapes.two_factor import TwoFactor


@torch.no_grad()
def restart(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    pruned: float = 0.99,
    generator: torch.Generator | None = None,
    name: str = "default",
) -> None:
    """Keep what an adapter has learned, frozen, and let it begin again; the model's outputs do not change.

    Args:
        model: A model with a two-factor adapter.
        optimizer: The one that trains it; None where there is no state to reset.
        pruned: Share of each moment of A and B that is set to zero, the smallest by magnitude; 1 zeroes all. Step
            counters stay.
        generator: Source of the new A, on the CPU; None draws from torch's own, which checkpoints of a run keep. Where
            several processes train the model give each one with the same seed, so that they draw the same A.
        name: The adapter.

    Raises:
        ValueError: No such adapter, a B that does not train, or a share outside [0, 1].
        TypeError: An adapter of another shape than B A, or an optimizer state that is not shaped like its parameter.

    Example:
        >>> from eckart.adapters import adapt
        >>> model = nn.Sequential(nn.Linear(8, 8))
        >>> _ = adapt(model, "relora", rank=2)
        >>> _ = nn.init.ones_(model[0].adapters.default.B)
        >>> before = model(torch.ones(1, 8))
        >>> restart(model)
        >>> model[0].adapters.default, torch.allclose(model(torch.ones(1, 8)), before, atol=1e-6)
        (TwoFactor(rank=2, scale=2.0, frozen_rank=2), True)
    """
    held = dict(adapters(model, name))
    if not held:
        raise ValueError(f"name: the model has no adapter {name!r}; adapt it first")
    if not 0 <= pruned <= 1:
        raise ValueError(f"pruned: {pruned}; give a share from 0 to 1")
    for place, adapter in held.items():
        if not isinstance(adapter, TwoFactor):
            raise TypeError(f"{place}: restart works on B A, and {type(adapter).__name__} is another shape")
        if "B" not in (adapter.settings.trains or adapter.factors):
            raise ValueError(f"{place}: a restart sets B to zero, and {adapter.settings.method} does not train it")
    pairs: dict[str, TwoFactor] = held  # type: ignore[assignment]
    moments = [
        value
        for place, adapter in pairs.items()
        for key in ("B", "A")
        for value in shaped_states(optimizer, getattr(adapter, key), f"{place}.{key}").values()
    ]
    dear = []
    for place, adapter in pairs.items():
        _begin_again(adapter, generator)
        dear += [place] if _dearer_than_dense(adapter) else []
        adapter.B.grad = adapter.A.grad = None
    for moment in moments:
        _prune(moment, pruned)
    if dear:
        warnings.warn(
            f"the frozen part of {', '.join(dear[:3])}{' and others' if dear[3:] else ''} costs more now than the "
            "dense matrix would: merge the adapter and adapt the merged model",
            stacklevel=2,
        )


def jagged_cosine(
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    every: int,
    warmup: int = 0,
    rewarm: int = 10,
    least: float = 0.1,
) -> torch.optim.lr_scheduler.LambdaLR:
    """The rate of ReLoRA: a cosine from 1 to `least` times the optimizer's, rising anew after every restart.

    At step t the rate is r(t) = least + (1 − least)(1 + cos π(t − warmup)/(steps − warmup))/2, times t/warmup before
    `warmup`; in the first `rewarm` steps p = 0, 1, … after a restart it is p/rewarm · r(the end of that rise).

    Args:
        optimizer: Its groups' rates are the peaks.
        steps: Of the whole training.
        every: Steps from one restart to the next, counted from 0: call `restart` when step % every == 0.
        warmup: Steps of the first rise.
        rewarm: Steps of each later rise, less than `every`.
        least: Where the cosine ends, from 0 to 1.

    Returns:
        A scheduler to step after each optimizer step.

    Raises:
        ValueError: Numbers that do not fit each other.

    Example:
        >>> optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> schedule = jagged_cosine(optimizer, steps=8, every=4, rewarm=2, least=0.0)
        >>> rates = []
        >>> for _ in range(8):
        ...     rates.append(round(schedule.get_last_lr()[0], 2))
        ...     optimizer.step(); schedule.step()
        >>> rates
        [1.0, 0.96, 0.85, 0.69, 0.0, 0.07, 0.15, 0.04]
    """
    if not (0 <= warmup < steps and every >= 1 and 0 <= rewarm < every and 0 <= least <= 1):
        raise ValueError(
            f"steps={steps}, every={every}, warmup={warmup}, rewarm={rewarm}, least={least}: needs 0 ≤ warmup < steps, "
            "0 ≤ rewarm < every and least from 0 to 1"
        )

    def cosine(step: float) -> float:
        progress = min(1.0, max(0.0, (step - warmup) / (steps - warmup)))
        return least + (1 - least) * (1 + math.cos(math.pi * progress)) / 2

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        since = step % every
        if step >= every and since < rewarm:
            return since / rewarm * cosine(step - since + rewarm)
        return cosine(step)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _begin_again(adapter: TwoFactor, generator: torch.Generator | None) -> None:
    """Freeze the pair as it is; A as LoRA draws it, B zero."""
    adapter.freeze(+1.0)
    drawn = torch.empty(adapter.A.shape, dtype=torch.float32)
    if adapter.kind == "embedding":
        drawn.normal_(generator=generator)
    else:
        bound = adapter.shape[1] ** -0.5
        drawn.uniform_(-bound, bound, generator=generator)
    adapter.A.copy_(drawn)
    adapter.B.zero_()


def _dearer_than_dense(adapter: Adapter) -> bool:
    """Whether this restart made the frozen product cost as much as its matrix."""
    m, n = adapter.shape
    assert adapter.frozen_B is not None
    now = adapter.frozen_B.shape[-1] * (m + n)
    return now >= m * n > now - adapter.rank * (m + n)


def _prune(moment: Tensor, share: float) -> None:
    """Zero its smallest entries."""
    count = math.ceil(share * moment.numel())
    if count >= moment.numel():
        moment.zero_()
    elif count:
        threshold = moment.abs().flatten().float().kthvalue(count).values
        moment.masked_fill_(moment.abs() <= threshold, 0.0)
