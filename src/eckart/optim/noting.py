"""What a training with low-rank states did, layer by layer: energy captured, refreshes, how long updates are.

    captured = ‖X V‖² / ‖X‖²    of the gradient at a refresh, in the old basis (before) and in the new one (after)
    update   = ‖D Vᵀ + a ∘ X + L Vᵀ + E‖    at the last step, before the rate η and the scale α

Off until `watch`, since it costs: a product 2 p q r at a refresh, and at each step a pass over D or the gradient, which
the limiters make alike. Numbers stay on the device, beside the state and not in it, and are read when they are asked
for; in a training that nobody asks nothing waits for the device.
Paper: for a basis that is drawn and not orthonormal (APOLLO, Flora) both hold on average over draws.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eckart.optim.limiters import squared_norm
from eckart.optim.sharding import Shards, together
from eckart.optim.step.slot import Slot
from eckart.optim.step.subspace import down

if TYPE_CHECKING:
    from eckart.optim.optimizer import LowRankOptimizer


def watch(optimizer: "LowRankOptimizer", on: bool = True) -> None:
    """Have the optimizer note what `telemetry` gives; it changes no step.

    Args:
        optimizer: Whose matrices.
        on: False stops it and forgets.
    """
    optimizer.seen = {} if on else None


def telemetry(optimizer: "LowRankOptimizer") -> dict[str, dict[str, float]]:
    """Read what was noted since `watch`. Waits for the device; of a sharded model every process must call it.

    Args:
        optimizer: As given to `watch`.

    Returns:
        Parameter name → `refreshes` (how many), `update` (the last one's norm), `captured_before` and
        `captured_after` (of the last refresh; the first basis has no before). Of matrices that made a step.

    Raises:
        ValueError: `watch` was not called.

    Example:
        >>> from eckart.optim import LowRankOptimizer
        >>> model = torch.nn.Linear(8, 6, bias=False)
        >>> optimizer = LowRankOptimizer(model, rank=1)
        >>> watch(optimizer)
        >>> model(torch.ones(1, 8)).sum().backward()  # a gradient of rank 1
        >>> optimizer.step()
        >>> {key: round(value, 3) for key, value in telemetry(optimizer)["weight"].items()}
        {'refreshes': 1, 'update': 2.828, 'captured_after': 1.0}
    """
    if optimizer.seen is None:
        raise ValueError("optimizer: nothing was noted; call watch(optimizer) before training")
    found: dict[str, dict[str, float]] = {}
    noted = [(p, seen) for p, seen in optimizer.seen.items() if "update" in seen]
    packed = [torch.stack([seen.get(key, seen["update"] * 0) for key in SQUARES]) for _, seen in noted]
    groups = [Shards(p, seen["stack"]).group for p, seen in noted]
    for (p, seen), squares in zip(noted, together(groups, packed), strict=True):
        update, whole, before, after = squares.tolist()
        each = {"refreshes": seen["refreshes"], "update": update**0.5}
        if whole:
            each |= {"captured_before": before / whole} if "before" in seen else {}
            each["captured_after"] = after / whole
        found[optimizer.name_of(p)] = each
    return found


SQUARES = ("update", "whole", "before", "after")  # of the rows that are here


def note_refresh(slot: Slot, old: Tensor | None) -> None:
    """Note what the basis before and the basis now hold of the gradient.

    Args:
        slot: With R in the new basis.
        old: The basis before, if there was one.
    """
    if slot.seen is None:
        return
    slot.seen["refreshes"] += 1
    slot.seen["whole"], slot.seen["after"] = _square(slot.X), _square(slot.R)
    if old is not None:
        slot.seen["before"] = _square(down(slot.X, old))


def note_update(slot: Slot) -> None:
    """Note how long the update is that the slot holds."""
    if slot.seen is not None:
        slot.seen["update"] = squared_norm(slot).sum()


def start_noting(noted: dict[Tensor, dict[str, Any]], slot: Slot) -> None:
    """Give a slot the notes of its parameter."""
    slot.seen = noted.setdefault(slot.parameter, {"refreshes": 0, "stack": slot.group["stack"]})


def _square(t: Tensor) -> Tensor:  # ()
    return torch.linalg.vector_norm(t, dim=-1).square().sum()  # over all at once float32 loses 1e-4
