"""`compress`: from a dense model to a plan, and from the plan to a smaller model.

Paper: none; the rows of `METHODS` name theirs.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eckart.compression.allocations.choosing import check_keep, given_sizes
from eckart.compression.allocations.named import ALLOCATIONS, COMPARING, OPTIONS
from eckart.compression.compressed import Compressed
from eckart.compression.fitting.learning import Data, Loss, learn
from eckart.compression.fitting.storing import FolderStore, Store
from eckart.compression.methods import METHODS, Method
from eckart.compression.pieces.piece import Piece
from eckart.compression.plan import Plan
from eckart.compression.selecting import selected
from eckart.compression.settings import Settings
from eckart.nn import Patterns, Progress, Role, roles
from eckart.nn.patterns import closest
from eckart.nn.sizes import model_bytes

HELD = 8  # one batch in so many is set aside where an allocation compares and no held-out batches are given


def compress(
    model: nn.Module,
    batches: Iterable[Any] = (),
    *,
    keep: float | None = None,
    ranks: Mapping[str, int] | None = None,
    method: str = "auto",
    allocation: str | None = None,
    targets: Patterns = None,
    exclude: Patterns = None,
    role: Mapping[str, str | Role] | None = None,
    loss: Loss | None = None,
    gradient_loss: Loss | None = None,
    gradient_batches: int | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    held_out: Iterable[Any] = (),
    shrink: float = 0.05,
    shrink_outputs: float = 0.05,
    floor: float = 0.25,
    multiple: int = 1,
    again: bool = False,
    work: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    dry_run: bool = False,
    **options: Any,
) -> Plan | Compressed:
    """Compress a model through the low rank of its matrices.

    Args:
        model: Any module; its Linear, transformers Conv1D and ungrouped convolution layers are compressed, embeddings
            and heads only where `targets` names them. With `dry_run` it is not touched, else changed in place.
        batches: Calibration batches, as `nn.observe` takes them; a method that looks at no data needs none. They are
            kept by the plan, in memory.
        keep: Stored bytes ÷ dense bytes of the selected matrices, above 0 and at most 1, permutations and scales
            included; None is 0.8 where no ranks are given.
        ranks: Matrix name → rank, instead of `keep`; matrices that are not named stay dense. Where several are
            decomposed together (`auto` and others), name them as the plan's rows do, with one size.
        method: A row of `METHODS`.
        allocation: A row of `ALLOCATIONS`, instead of the method's own.
        targets: Glob patterns of the matrices to compress; None means all but embeddings and heads.
        exclude: Glob patterns of those that stay dense.
        role: Who is q, k, v, o, gate, up or down where names do not tell (overrides of `nn.roles`).
        loss: (output, batch) → scalar; None takes the output's own. Used for gradients and held-out losses.
        gradient_loss: Another loss for the gradients (labels drawn from the model itself, say); None: `loss`.
        gradient_batches: From how many of the batches output gradients are taken; None: all.
        forward: (model, batch) → output, for batches that the model does not take as they are.
        held_out: Batches for allocations that compare losses, and for measuring errors; of other text than `batches`.
            Without any, an allocation that compares sets every eighth of `batches` aside.
        shrink: See `Settings`, as `shrink_outputs`, `floor` and `multiple`.
        again: Compress further what is compressed already.
        work: A folder where what is learned is kept, so that an interrupted run goes on from there.
        progress: Called as progress(done, total, label).
        dry_run: Give the plan and leave the model as it is.
        options: What the method alone knows; its row names them.

    Returns:
        The plan where `dry_run`, else what came of it (`Plan`, `Compressed`).

    Raises:
        ValueError: A number, name or pattern that does not fit, no batches where the method needs some, or a model that
            is compressed or adapted already.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False))
        >>> plan = compress(model, keep=0.5, method="svd", dry_run=True)
        >>> print(plan)
        svd: 2 of 2 matrices to compress, 0.500 of their bytes kept (0.500 of the model's)
        >>> plan.at(keep=0.25).sizes
        {'0': 1, '2': 1}
        >>> type(plan.apply().model[0]).__name__
        'FactoredLinear'
    """
    row = _row(method)
    allocation = row.allocation if allocation is None else allocation
    if allocation not in ALLOCATIONS:
        raise ValueError(f"allocation: {allocation!r}; give one of {', '.join(ALLOCATIONS)}")
    known = {**OPTIONS[allocation], **row.options}
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(
            f"options: {', '.join(unknown)} unknown to method {method!r} with allocation {allocation!r}, which know "
            f"{', '.join(known) or 'none'}"
        )
    if keep is not None and ranks is not None:
        raise ValueError("keep, ranks: give one of the two")
    keep = 0.8 if keep is None and ranks is None else keep
    if keep is not None:
        check_keep(keep)
    settings = Settings(shrink, shrink_outputs, floor, multiple, {**known, **options}, roles(model, role), progress)
    found, others = selected(model, targets, exclude, again=again)
    seen, held = list(batches), tuple(held_out)
    if row.metric.wanted and not seen:
        raise ValueError(f"batches: none; {method!r} looks at {', '.join(row.metric.wanted)}: give some")
    if not held and allocation in COMPARING and keep not in (None, 1):
        seen, held = _set_aside(seen, allocation)
    if row.inputs == "anchored" and allocation in COMPARING:
        raise ValueError(
            f"allocation: {allocation!r} compares layers that are fitted to dense inputs, which {method!r} does not "
            f"build; give another, such as {row.allocation!r}"
        )
    data = Data(seen, loss, gradient_loss, forward, gradient_batches, progress)
    pieces = row.unit(model, found, settings, row.metric)
    given_sizes(pieces, ranks or {})  # refused before anything is learned
    store: Store = {} if work is None else FolderStore(work, _job(model, method, pieces, settings, data))
    tokens = learn(model, pieces, row.metric.wanted, data, store)
    notes = _notes(pieces, tokens) if row.metric.wanted else ()
    whole = model_bytes(model)
    plan = Plan(
        model=model, method=method, keep=None, sizes={}, pieces=tuple(pieces), settings=settings,
        allocation=allocation, data=data, store=store, held_out=held, tokens=tokens, model_bytes=whole,
        left_out=others, notes=notes,
    )  # fmt: skip
    plan = plan.at(keep=keep, ranks=ranks)
    return plan if dry_run else plan.apply()


def _set_aside(batches: list[Any], allocation: str) -> tuple[list[Any], tuple[Any, ...]]:
    """Every eighth batch for comparing, or the last of fewer; and what is left for calibration."""
    if len(batches) < 2:
        raise ValueError(
            f"held_out: no batches, and {len(batches)} to set some aside from; allocation {allocation!r} compares "
            "losses on held-out batches: give held_out=, or another allocation, such as 'hulls'"
        )
    held = set(range(HELD - 1, len(batches), HELD)) or {len(batches) - 1}
    rest = [batch for number, batch in enumerate(batches) if number not in held]
    return rest, tuple(batches[number] for number in sorted(held))


def _row(method: str) -> Method:
    if method not in METHODS:
        raise ValueError(f"method: {method!r} is not known; closest: {closest(method, METHODS, whole=True)}")
    return METHODS[method]


def _notes(pieces: list[Piece], tokens: Mapping[str, int]) -> tuple[str, ...]:
    """What calibration lacked."""
    widths = {name: matrix.shape[1] for piece in pieces for name, matrix in piece.members.items()}
    unread = [name for name in widths if tokens.get(name, 0) == 0]
    few = {name: tokens[name] for name in widths if 0 < tokens.get(name, 0) < widths[name]}
    notes = []
    if unread:
        notes.append(f"{len(unread)} matrices were not read by any batch ({unread[0]} first): only their weights count")
    if few:
        name, count = min(few.items(), key=lambda item: item[1] / widths[item[0]])
        notes.append(
            f"{len(few)} matrices read fewer tokens than they have inputs ({name}: {count} of {widths[name]}): their "
            "covariance is singular, and quality on other text will suffer; calibrate on more text"
        )
    return tuple(notes)


def _job(model: nn.Module, method: str, pieces: list[Piece], settings: Settings, data: Data) -> dict[str, Any]:
    """What learned tensors depend on, as JSON."""
    known = {name: settings.options[name] for name in METHODS[method].options}
    return {
        "method": method,
        "matrices": {piece.label: list(piece.shape) for piece in pieces},
        "weights": [_checksum(tensor) for tensor in (*model.parameters(), *model.buffers())],
        "shrink": [settings.shrink, settings.shrink_outputs],
        "options": {name: str(value) for name, value in known.items()},
        "batches": [_digest(data.batches), data.gradient_batches],
        "calls": [_name(each) for each in (data.loss, data.gradient_loss, data.forward)],
    }


def _checksum(W: Tensor) -> int:
    """The sum of its bits as integers: the same on every device, with any number of threads."""
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return int(W.detach().contiguous().view(kinds[W.element_size()]).sum(dtype=torch.int64))


def _digest(batches: Sequence[Any]) -> str:
    """SHA-256 of all tensors of the batches, in order."""
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(value, Mapping | tuple | list):
            for each in value.values() if isinstance(value, Mapping) else value:
                add(each)

    add(list(batches))
    return found.hexdigest()


def _name(call: Callable[..., Any] | None) -> str | None:
    """What a function is called: its own name or its class's, with the numbers of a dataclass."""
    if is_dataclass(call):
        return repr(call)
    return None if call is None else getattr(call, "__qualname__", type(call).__qualname__)
