"""Which parameters are trained in a subspace, and at which rank: parameter groups from a model."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from eckart.nn import Matrix, Patterns, matrices, select
from eckart.nn.heads import head_names
from eckart.nn.patterns import closest
from eckart.optim.view import as_matrix_shape

USUAL = ("linear", "conv1d", "conv", "attention", "experts")


def param_groups(
    model: nn.Module,
    rank: int | Mapping[str, int],
    *,
    targets: Patterns = None,
    exclude: Patterns = None,
    decay_vectors: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:
    """Sort a model's trained parameters for `LowRankOptimizer`: matrices by rank, and the rest, which gets AdamW.

    Args:
        model: The model.
        rank: r of every matrix, or matrix name → r as `Profile.suggest_ranks` gives it (a stack's members must agree;
            a full rank, the smaller dimension, says dense: AdamW).
        targets: Glob patterns of names; None: every linear, convolution, attention and experts weight but the
            head. With a mapping: of all that it names.
        exclude: Patterns of names that get AdamW.
        decay_vectors: Whether weight decay is also for biases, norms and other vectors.
        options: Further options of the matrices' groups, as `LowRankOptimizer` takes them.

    Returns:
        Groups with names (`named_parameters`), the last one without a rank.

    Raises:
        ValueError: A name or pattern matches nothing (with the closest names), or nothing is left to train.

    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 8), nn.Linear(8, 8))
        >>> [(group.get("rank"), [name for name, _ in group["params"]]) for group in param_groups(model, 2)]
        [(2, ['1.weight', '2.weight']), (None, ['0.weight', '1.bias', '2.bias'])]
        >>> [(group.get("rank"), len(group["params"])) for group in param_groups(model, {"1": 2, "2": 8})]
        [(2, 1), (None, 4)]
    """
    found = {each.name: each for each in matrices(model) if each.stored}
    ranks = _ranks(model, found, rank, targets, exclude)
    chosen: dict[tuple[int, bool], list[tuple[str, nn.Parameter]]] = {}
    taken = set()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, r in ranks.items():
        matrix = found[name]
        parameter = matrix.module._parameters[matrix.parameter]
        if parameter is None or not parameter.requires_grad:
            continue
        stack = matrix.kind == "experts"
        if isinstance(rank, Mapping) and _is_full(parameter, r, stack):
            continue
        taken.add(id(parameter))
        chosen.setdefault((r, stack), []).append((names[id(parameter)], parameter))
    rest = [(n, p) for n, p in model.named_parameters() if p.requires_grad and id(p) not in taken]
    if not taken:
        raise ValueError("params: no matrix is left to train in a subspace; see requires_grad, targets, exclude")
    groups = [{"params": each, "rank": r, "stack": stack, **options} for (r, stack), each in chosen.items()]
    plain: dict[str, Any] = {key: options[key] for key in ("weight_decay", "betas", "eps") if key in options}
    vectors = [(n, p) for n, p in rest if p.ndim < 2]
    if rest and not decay_vectors and vectors and options.get("weight_decay"):
        tables = [(n, p) for n, p in rest if p.ndim >= 2]
        groups += [{"params": tables, "rank": None, **plain}] if tables else []
        return [*groups, {"params": vectors, "rank": None, **plain, "weight_decay": 0.0}]
    return [*groups, *([{"params": rest, "rank": None, **plain}] if rest else [])]


def split_by_rank(params: Iterable[Any], ranks: Mapping[str, int]) -> list[dict[str, Any]]:
    """Sort named parameters by the ranks of a mapping; what it does not name gets AdamW.

    Args:
        params: (name, parameter) pairs, as `model.named_parameters()` gives them.
        ranks: Name → r; the names may leave out a trailing ".weight". A full rank is AdamW too.

    Raises:
        ValueError: The parameters have no names, or a name is not among them.
    """
    pairs = list(params)
    if not all(isinstance(pair, tuple) for pair in pairs):
        raise ValueError("rank: a mapping needs names; give the model, or model.named_parameters()")
    every = {name.removesuffix(".weight"): name for name, _ in pairs} | {name: name for name, _ in pairs}
    given = {}
    for name, r in ranks.items():
        if name not in every:
            raise ValueError(f"rank: there is no parameter {name!r}; closest: {closest(name, every, whole=True)}")
        given[every[name]] = r
    groups: dict[int | None, list[Any]] = {}
    for name, parameter in pairs:
        r = given.get(name)
        groups.setdefault(None if _is_full(parameter, r, stack=False) else r, []).append((name, parameter))
    return [{"params": each, "rank": r} for r, each in groups.items()]


def _is_full(parameter: Tensor, rank: int | None, stack: bool) -> bool:
    return parameter.ndim >= 2 and rank == min(as_matrix_shape(parameter.shape, stack)[-2:])


def _ranks(
    model: nn.Module,
    found: Mapping[str, Matrix],
    rank: int | Mapping[str, int],
    targets: Patterns,
    exclude: Patterns,
) -> dict[str, int]:
    """Matrix name → rank of what is chosen."""
    every = {name: each.name for each in found.values() for name in (each.name, *each.tied)}
    if isinstance(rank, Mapping):
        given: dict[str, int] = {}
        for name, r in rank.items():
            stack = name.partition("[")[0]
            if stack not in every:
                raise ValueError(f"rank: there is no matrix {name!r}; closest: {closest(name, every, whole=True)}")
            if given.setdefault(every[stack], r) != r:
                raise ValueError(f"rank: the members of {stack} have different ranks; a stack has one")
        names = {every[name] for name in select(every, targets, exclude)}
        return {name: r for name, r in given.items() if name in names}
    names = {every[name] for name in select(every, targets, exclude)}
    if targets is None:
        names = {name for name in names if found[name].kind in USUAL} - head_names(model, found.values())
    return {name: rank for name in found if name in names}
