"""`adapt`: put adapters of one method on the matrices of a model, which trains nothing else from then on."""

import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from eckart.adapters.changing.replicas import plain
from eckart.adapters.choosing.auto import choose_ranks
from eckart.adapters.choosing.evidence import evidence_lines
from eckart.adapters.choosing.observing import observe_bases
from eckart.adapters.choosing.ranks import check_automatic, fixed_ranks
from eckart.adapters.choosing.targets import chosen, left_by_default, warn_of_tied
from eckart.adapters.layers.place import adapters
from eckart.adapters.layers.placing import check_options, place_all
from eckart.adapters.layers.saved_modules import add_copies, chosen_modules, inside
from eckart.adapters.methods import METHODS, Method
from eckart.adapters.settings import Settings
from eckart.adapters.starts.start import LookAtAll
from eckart.adapters.starts.starting import Asked, prepare, start_all, with_prepared
from eckart.adapters.using.switching import activate, check_name
from eckart.nn import Matrix, Observation, Patterns, Progress
from eckart.nn.patterns import closest


@dataclass(frozen=True)
class Adaptation:
    """What `adapt` did.

    Example:
        >>> print(adapt(nn.Sequential(nn.Linear(6, 4)), rank=2))
        lora "default" on 1 matrix of rank 2: 20 parameters train, 41.67 % of 48
    """

    name: str
    settings: Settings
    trained: int  # parameters
    total: int  # parameters of the model, adapters included
    left_out: dict[str, str] = field(default_factory=dict)  # what default targets did not take, name → reason

    def __str__(self) -> str:
        ranks = sorted(set(self.settings.ranks.values()))
        said = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
        count = len(self.settings.ranks)
        return (
            f'{self.settings.method} "{self.name}" on {count} {"matrix" if count == 1 else "matrices"} of {said}: '
            f"{self.trained:,} parameters train, {self.trained / self.total:.2%} of {self.total:,}".replace("%", " %")
            + (f"; {len(self.left_out)} left out, see left_out" if self.left_out else "")
            + "".join(f"\n{line}" for line in evidence_lines(self.settings.evidence))
        )


def adapt(
    model: nn.Module,
    method: str = "lora",
    *,
    rank: int | Mapping[str, int] | str | None = None,
    budget: float | int | str | None = None,
    alpha: float | None = None,
    targets: Patterns = None,
    exclude: Patterns = None,
    layers: Collection[int] | None = None,
    dropout: float = 0.0,
    magnitude: bool | None = None,
    bias: bool = False,
    modules_to_save: Patterns = None,
    name: str = "default",
    dtype: torch.dtype | None = None,
    batches: Iterable[Any] | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Adaptation:
    """Put adapters on a model's matrices and freeze the rest.

    The model is changed in place, and computes what it did before (Δ = 0) until the adapters train.

    Args:
        model: Any module.
        method: A row of `METHODS`.
        rank: One rank for all, or matrix name → rank, as `Profile.suggest_ranks` gives it (only those named are
            adapted), or "auto": ranks, targets and α from the gradients of `batches` (see `adapters.choosing.auto`);
            None is the method's default.
        budget: For rank="auto", the parameters of all B and A together: a number, or a share of the model's (0.01,
            "1%").
        alpha: α > 0; None is the method's default (some are not scaled and take none). With rank="auto" it is divided
            by the rank that all would have at this budget, so that the scale does not jump with the rank.
        targets: Glob patterns of the matrices to adapt; None: every linear and convolution layer but the head.
        exclude: Patterns of matrices to leave alone.
        layers: Numbers of the layers to adapt; None for all.
        dropout: Share of the inputs that the low-rank path drops while training, 0 ≤ dropout < 1.
        magnitude: Whether the length of each row trains apart (DoRA), with any shape; None is as the method says.
        bias: Whether a change of each layer's bias trains too.
        modules_to_save: Glob patterns of modules to train whole beside them, as a new head; none of their matrices is
            adapted.
        name: What to call this adapter; a model can hold several.
        dtype: Of the adapter's parameters; None is float32 for a base of half precision, else the base's.
        batches: For rank="auto" and starts that look at data: batches as `nn.observe` takes them.
        loss: For rank="auto" and starts that look at gradients: (output, batch) → scalar; None takes the output's own
            loss.
        forward: For batches that the model does not take as they are: (model, batch) → output, such as
            `lambda model, batch: model(batch[0])` for pairs of inputs and labels.
        generator: Source of the random starts, on the CPU; None is a fixed seed.
        progress: Called as progress(done, total, label) during long work.
        options: What the method alone knows (see its row's `options`).

    Returns:
        Adaptation: what was adapted, and how many parameters train.

    Raises:
        ValueError: An unknown method, option, target or rank name (the message gives the closest), a rank above
            min(m, n), a name in use, or a method that needs batches without any. The model is then as it was.
        RuntimeError: The model is under DDP or FSDP already, which would not train what is new.

    Example:
        >>> model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> print(adapt(model, rank={"0": 2, "2": 1}))
        lora "default" on 2 matrices of ranks 1 to 2: 26 parameters train, 40.62 % of 64
        >>> [key for key, p in model.named_parameters() if p.requires_grad][:2]
        ['0.adapters.default.B', '0.adapters.default.A']
    """
    model = plain(model, "adapt")
    row = _row(method)
    extra = _options(method, row, options)
    _check_numbers(alpha, dropout, dtype, method, row)
    check_name(model, name)
    whole = chosen_modules(model, modules_to_save)
    automatic = check_automatic(rank, budget, method, row)
    asked: int | Mapping[str, int] = 1 if automatic else row.rank if rank is None else rank  # type: ignore[assignment]
    named = asked if isinstance(asked, Mapping) else ()
    found = [m for m in chosen(model, targets, exclude, layers, named) if not inside(m.name, whole)]
    left_out: dict[str, str] = {}
    if targets is None and not named:
        found, left_out = left_by_default(model, found, asked if row.shape.bounded else None)
    if automatic:
        batches = None if batches is None else list(batches)
        choice = choose_ranks(model, found, budget, batches, loss, forward, progress)
        asked = choice.ranks
    ranks = fixed_ranks(found, asked, row.shape.bounded)
    found = [matrix for matrix in found if matrix.name in ranks]
    check_options(model, found, dropout, bias)
    warn_of_tied(found)
    settings = Settings(
        method, ranks, row.alpha if alpha is None else alpha, row.scaling, dropout, row.trains, whole, _plain(extra)
    )
    if automatic:
        settings.evidence, settings.scaled_as = choice.evidence, choice.scaled_as
    seen = _observed(model, found, method, row, batches, loss, forward, progress)
    look = LookAtAll(found, seen, ranks, rank is None or isinstance(rank, int), extra, progress)
    with torch.no_grad():
        ready = prepare(row, look)
    found = [matrix for matrix in found if matrix.name in ready]
    settings = with_prepared(settings, ready, rank if isinstance(rank, int) else row.rank)
    row.shape.share(found, settings)
    wanted = Asked(dtype, row.magnitude if magnitude is None else magnitude, bias)
    made = start_all(row, settings, found, seen, ready, extra, generator, wanted, progress)
    place_all(model, found, made, name)
    add_copies(model, whole, name)
    model.requires_grad_(False)
    activate(model, name)
    return replace(summary(model, name), left_out=left_out)


def summary(model: nn.Module, name: str) -> Adaptation:
    """What is adapted under this name, now."""
    held = [adapter for _, adapter in adapters(model, name)]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Adaptation(name, held[0].settings, trained, sum(p.numel() for p in model.parameters()))


def _row(method: str) -> Method:
    if method not in METHODS:
        raise ValueError(f"method: there is no {method!r}; closest: {closest(method, METHODS, whole=True)}")
    return METHODS[method]


def _options(method: str, row: Method, options: Mapping[str, Any]) -> dict[str, Any]:
    unknown = [key for key in options if key not in row.options]
    if unknown:
        known = ", ".join(row.options) or "none"
        raise ValueError(f"{unknown[0]}: {method} has no such option; it has {known}")
    return {**row.options, **options}


def _check_numbers(alpha: Any, dropout: Any, dtype: torch.dtype | None, method: str, row: Method) -> None:
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ValueError(f"dropout: {dropout!r}; give a share of at least 0 and below 1")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype: {dtype}; adapters train, so give a floating-point type")
    if alpha is None:
        return
    if row.scaling == "none":
        raise ValueError(f"alpha: {alpha}, but {method} is not scaled by one; leave it out")
    if not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise ValueError(f"alpha: {alpha!r}; give a number above 0")


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as data for the files: of a tensor, a model or a mapping only what it was."""
    plain = {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in options.items()}
    kept = (str, int, float, bool, list, tuple, type(None))
    return {key: value if isinstance(value, kept) else type(value).__name__ for key, value in plain.items()}


def _observed(
    model: nn.Module,
    found: list[Matrix],
    method: str,
    row: Method,
    batches: Iterable[Any] | None,
    loss: Callable[[Any, Any], Tensor] | None,
    forward: Callable[[nn.Module, Any], Any] | None,
    progress: Progress | None,
) -> dict[str, Observation]:
    """One pass over the batches, where the start looks at data."""
    if not row.wanted:
        return {}
    if batches is None:
        raise ValueError(f"batches: {method} starts from data ({', '.join(row.wanted)}); give some batches")
    return observe_bases(model, found, row.wanted, batches, loss, forward, progress)
