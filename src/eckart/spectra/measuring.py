"""`measure`: look at a model's low-rank structure, from whatever is at hand."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from eckart.nn import Patterns, Progress, left_out
from eckart.nn.files import open_checkpoint

from .entry import Entry
from .optimizer import measure_optimizer
from .passes import measure_passes
from .profile import Profile
from .sources import measure_weights
from .spectrum import MODES
from .updates import measure_adapter, measure_updates


def measure(
    subject: nn.Module | str | Path,
    *,
    of: str | Sequence[str] | None = None,
    mode: str = "full",
    base: nn.Module | str | Path | None = None,
    adapter: str | Path | None = None,
    batches: Iterable[Any] | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    optimizer: Optimizer | None = None,
    targets: Patterns = None,
    exclude: Patterns = None,
    progress: Progress | None = None,
) -> Profile:
    """Measure the spectra of a model's matrices.

    Args:
        subject: A model, or a checkpoint on disk: a safetensors file, or a folder of them (read one matrix at a time,
            without the model's code).
        of: What to measure: any of "weights", "updates", "gradients", "activations", "optimizer". None measures the
            weights and whatever the other arguments make possible (gradients where both batches and loss are given).
        mode: "full" (every singular value) or "fast" (the largest 16 within 1 %, and the exact energy).
        base: The model or checkpoint before training; `updates` are W − W₀.
        adapter: A PEFT adapter folder; its B·A are the `updates` and `subject` is their base.
        batches: What to run the model on, for gradients and activations: dicts, tuples or tensors.
        loss: loss(output, batch) → scalar, for gradients; None takes `output.loss`.
        optimizer: A torch optimizer that has stepped, for its moments.
        targets: Glob patterns of the matrices to measure, matched on the name or its last parts; None takes all.
        exclude: Glob patterns of those to leave out.
        progress: Called with (done, total, name).

    Returns:
        A `Profile`.

    Raises:
        ValueError: Something asked for can't be measured; the message says what is missing or wrong.
        FileNotFoundError: A path is not there.

    Example:
        >>> import torch, eckart
        >>> W = torch.diag(torch.tensor([3.0, 4.0, 0.0]))
        >>> layer = torch.nn.Linear(3, 3, bias=False)
        >>> layer.weight.data = W
        >>> eckart.measure(torch.nn.Sequential(layer)).rows()[0]["numerical_rank"]
        2
    """
    given = {"base": base, "adapter": adapter, "batches": batches, "loss": loss, "optimizer": optimizer}
    chosen = _chosen(of, given)
    _check(subject, chosen, mode, given)
    common: dict[str, Any] = {"mode": mode, "targets": targets, "exclude": exclude, "progress": progress}
    entries: list[Entry] = []
    if "weights" in chosen:
        entries += measure_weights(subject, **common)
    if "updates" in chosen and adapter is not None:
        entries += measure_adapter(subject, adapter, **common)
    elif "updates" in chosen and base is not None:
        entries += measure_updates(subject, base, **common)
    if isinstance(subject, nn.Module):
        if batches is not None and (passes := [kind for kind in ("activations", "gradients") if kind in chosen]):
            entries += measure_passes(subject, batches, passes, loss=loss, **common)
        if "optimizer" in chosen and optimizer is not None:
            entries += measure_optimizer(subject, optimizer, **common)
    return Profile(entries, mode, _describe(subject), _details(subject, targets, exclude))


# What each kind needs: one of these arguments.
NEEDS = {
    "weights": (),
    "updates": ("base", "adapter"),
    "activations": ("batches",),
    "gradients": ("batches",),
    "optimizer": ("optimizer",),
}


def _chosen(of: str | Sequence[str] | None, given: Mapping[str, object]) -> list[str]:
    """The kinds that `of` names, or all that the arguments make possible."""
    if of is None:
        there = {name for name, value in given.items() if value is not None}
        possible = [kind for kind, needs in NEEDS.items() if not needs or there.intersection(needs)]
        return [kind for kind in possible if kind != "gradients" or "loss" in there]
    kinds = [of] if isinstance(of, str) else list(of)
    if not kinds or (unknown := [kind for kind in kinds if kind not in NEEDS]):
        raise ValueError(f"of must name some of {tuple(NEEDS)}, got {unknown if kinds else 'nothing'}")
    return kinds


def _check(subject: object, chosen: list[str], mode: str, given: Mapping[str, object]) -> None:
    """Raise where something is missing, contradicts itself, or would be ignored."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
    there = {name for name, value in given.items() if value is not None}
    if {"base", "adapter"} <= there:
        raise ValueError("base and adapter are two ways to name the update; pass one of them")
    for kind in chosen:
        needs = NEEDS[kind]
        if needs and not there.intersection(needs):
            raise ValueError(f"measuring {kind} needs {' or '.join(f'{name}=' for name in needs)}")
        if kind not in ("weights", "updates") and not isinstance(subject, nn.Module):
            raise ValueError(f"measuring {kind} needs a model that can run, got the path {subject}; load it first")
    used = {name for kind in chosen for name in NEEDS[kind]} | ({"loss"} if "gradients" in chosen else set())
    if idle := sorted(there - used):
        raise ValueError(f"{', '.join(idle)} is for kinds that of={chosen} leaves out; add them or drop the argument")


def _describe(subject: nn.Module | str | Path) -> str:
    return type(subject).__name__ if isinstance(subject, nn.Module) else str(subject)


def _details(subject: nn.Module | str | Path, targets: Patterns, exclude: Patterns) -> dict[str, Any]:
    left = left_out(subject, targets, exclude) if isinstance(subject, nn.Module) else _unread(subject, targets, exclude)
    return {"created": datetime.now(UTC).isoformat(timespec="seconds"), "torch": torch.__version__, "left_out": left}


def _unread(path: str | Path, targets: Patterns, exclude: Patterns) -> dict[str, str]:
    return open_checkpoint(path).left_out(targets, exclude)
