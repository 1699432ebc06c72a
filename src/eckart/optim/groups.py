"""Which parameters are trained in a subspace, and at which rank: parameter groups from a model."""

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from eckart.nn import Matrix, Patterns, matrices, member_name, select, split_member
from eckart.nn.heads import head_names
from eckart.nn.patterns import closest
from eckart.optim.step.view import as_matrix_shape

USUAL = ("linear", "conv1d", "conv", "attention", "experts")


def param_groups(
    model: nn.Module,
    rank: float | Mapping[str, float],
    *,
    targets: Patterns = None,
    exclude: Patterns = None,
    decay_vectors: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:
    """Sort a model's trained parameters for `LowRankOptimizer`: matrices by rank, and the rest, which gets AdamW.

    Args:
        model: The model.
        rank: r of every matrix, or a share below 1 of its smaller dimension; or matrix name → r as
            `Profile.suggest_ranks` gives it: a full rank, the smaller dimension, says dense, which is AdamW; the
            members of a stack share the mean of their ranks.
        targets: Glob patterns of names; None: every linear, convolution, attention and experts weight but the
            head and, with a warning, what is smaller than the rank. With a mapping: of all that it names.
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
    trained = {each.name: each for each in found.values() if _parameter(each).requires_grad}
    chosen: dict[tuple[float, bool], list[tuple[str, nn.Parameter]]] = {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, r in _ranks(model, found, trained, rank, targets, exclude).items():
        parameter, stack = _parameter(found[name]), found[name].kind == "experts"
        chosen.setdefault((r, stack), []).append((names[id(parameter)], parameter))
    taken = {id(parameter) for each in chosen.values() for _, parameter in each}
    rest = [(n, p) for n, p in model.named_parameters() if p.requires_grad and id(p) not in taken]
    if not taken:
        raise ValueError("params: no matrix is left to train in a subspace; see requires_grad, targets, exclude")
    groups = [{"params": each, "rank": r, "stack": stack, **options} for (r, stack), each in chosen.items()]
    plain: dict[str, Any] = {key: options[key] for key in ("weight_decay", "betas", "eps") if key in options}
    vectors = [(n, p) for n, p in rest if p.ndim < 2]
    if vectors and not decay_vectors and options.get("weight_decay"):
        tables = [(n, p) for n, p in rest if p.ndim >= 2]
        groups += [{"params": tables, "rank": None, **plain}] if tables else []
        return [*groups, {"params": vectors, "rank": None, **plain, "weight_decay": 0.0}]
    return [*groups, *([{"params": rest, "rank": None, **plain}] if rest else [])]


def split_by_rank(params: Iterable[Any], ranks: Mapping[str, float]) -> list[dict[str, Any]]:
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
    groups: dict[float | None, list[Any]] = {}
    for name, parameter in pairs:
        full = parameter.ndim >= 2 and given.get(name) == min(as_matrix_shape(parameter.shape, stack=False)[-2:])
        groups.setdefault(None if full else given.get(name), []).append((name, parameter))
    return [{"params": each, "rank": r} for r, each in groups.items()]


def _parameter(matrix: Matrix) -> nn.Parameter:
    parameter = matrix.module._parameters[matrix.parameter]
    assert parameter is not None  # as it is stored
    return parameter


def _ranks(
    model: nn.Module,
    found: Mapping[str, Matrix],
    trained: Mapping[str, Matrix],
    rank: float | Mapping[str, float],
    targets: Patterns,
    exclude: Patterns,
) -> dict[str, float]:
    """Matrix name → rank of what is trained in a subspace."""
    every = {name: each.name for each in found.values() for name in (each.name, *each.tied)}
    names = {every[name] for name in select(every, targets, exclude)} & set(trained)
    if isinstance(rank, Mapping):
        given = _of_matrices(rank, every, found)
        return {name: r for name, r in given.items() if name in names and r != _full(found[name])}
    if targets is None:
        names = {name for name in names if found[name].kind in USUAL} - head_names(model, found.values())
        small = sorted(name for name in names if isinstance(rank, int) and rank > _full(found[name]))
        if small and len(small) < len(names):
            names -= set(small)
            warnings.warn(
                f"rank {rank} is above a dimension of {', '.join(small)}: AdamW has {'them' if small[1:] else 'it'}. "
                "Give a mapping of ranks to choose otherwise, or exclude them to say so",
                stacklevel=3,
            )
    return {name: rank for name in found if name in names}


def _of_matrices(ranks: Mapping[str, float], every: Mapping[str, str], found: Mapping[str, Matrix]) -> dict[str, float]:
    """Matrix name → rank. The members of a stack, which `name[index]` names, share the mean of theirs, rounded up."""
    given: dict[str, dict[int | None, float]] = {}
    for name, r in ranks.items():
        stack, member = split_member(name)
        if stack not in every or (member is not None and member >= found[every[stack]].stack):
            raise ValueError(f"rank: there is no matrix {name!r}; closest: {closest(name, every, whole=True)}")
        if given.setdefault(every[stack], {}).setdefault(member, r) != r:
            raise ValueError(f"rank: {name} has the weight of another name, which has another rank; they are tied")
    return {name: _shared(found[name], each) for name, each in given.items()}


def _shared(matrix: Matrix, ranks: Mapping[int | None, float]) -> float:
    if set(ranks) == {None}:
        return ranks[None]
    absent = [i for i in range(matrix.stack) if i not in ranks]
    if None in ranks or absent:
        why = "it and its members have ranks" if None in ranks else f"{member_name(matrix.name, absent[0])} has none"
        raise ValueError(
            f"rank: {matrix.name} is one stack of {matrix.stack}: {why}; give one rank, or one for each member"
        )
    mean = sum(ranks.values()) / matrix.stack
    mean = mean if mean < 1 else math.ceil(mean)
    return _full(matrix) if mean == min(matrix.shape) else mean


def _full(matrix: Matrix) -> int:
    return min(as_matrix_shape(_parameter(matrix).shape, matrix.kind == "experts")[-2:])
