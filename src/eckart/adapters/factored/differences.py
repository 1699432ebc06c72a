"""Two models side by side, modules or checkpoints on disk: the matrices that both have, and what else differs.

A checkpoint knows names and shapes only; where the other side is a module, it says how the tensors are oriented. Two
checkpoints are compared as they are stored (transformers' Conv1D as (in, out)).

Paper: none.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eckart.adapters.choosing.targets import chosen, matrices_by_name
from eckart.adapters.layers.saved_modules import modules_before
from eckart.linalg import working_dtype
from eckart.nn import Matrix, Patterns
from eckart.nn.files import Checkpoint, CheckpointMatrix
from eckart.nn.patterns import closest

Source = nn.Module | Checkpoint
Held = Matrix | CheckpointMatrix


@dataclass(frozen=True)
class Both:
    """One matrix in the two models.

    Args:
        shape: (m, n).
        read: The base's, then the tuned one's, as (m, n).
        keys: Its parameter's name in each.
    """

    shape: tuple[int, int]
    read: tuple[Callable[[], Tensor], Callable[[], Tensor]]
    keys: tuple[str, str]

    def delta(self) -> tuple[Tensor, float]:  # (m, n)
        """W_tuned − W_base in float32 or wider, and its norm in units of the base's."""
        W, tuned = (read().detach() for read in self.read)
        dtype = working_dtype(torch.promote_types(W.dtype, tuned.dtype))
        W = W.to(dtype)
        delta = tuned.to(W.device, dtype) - W
        if not bool(torch.isfinite(delta).all()):
            raise ValueError(f"tuned: the difference of {self.keys[1]} is not finite; repair the weights")
        norms = (float(torch.linalg.vector_norm(each)) for each in (delta, W))
        return delta, _relative(*norms)


def both(base: Source, tuned: Source, targets: Patterns, exclude: Patterns) -> dict[str, Both]:
    """The matrices of the base that are chosen, with the tuned model's.

    Raises:
        ValueError: A pattern matches nothing, or the tuned model lacks a matrix or has another shape of it.
    """
    if isinstance(base, nn.Module):
        found: list[Held] = list(chosen(base, targets, exclude))
    else:
        found = list(base.matrices(targets, exclude))
    known = _known(tuned)
    matched = {}
    for held in (each for each in found if each.stack == 1):
        if held.name not in known:
            raise ValueError(
                f"tuned: it has no matrix {held.name!r}; closest: {closest(held.name, known, whole=True)}. Exclude it, "
                "if it is not to be extracted"
            )
        other = known[held.name]
        layout = next((each for each in (held, other) if isinstance(each, Matrix)), None)
        shapes = tuple(layout.shape if layout is not None else each.shape for each in (held, other))
        stored = tuple(_stored(source, each) for source, each in ((base, held), (tuned, other)))
        if stored[0] != stored[1] or shapes[0] != shapes[1]:
            raise ValueError(
                f"tuned: {held.name} is {stored[0]} in the base and {stored[1]} in the tuned model; exclude it"
            )
        read = (_reader(base, held, layout), _reader(tuned, other, layout))
        matched[held.name] = Both(shapes[0], read, (_key(held), _key(other)))
    return matched


def differences(base: Source, tuned: Source, matched: Mapping[str, Both]) -> dict[str, str]:
    """What differs beside the matched matrices: norms, biases, embeddings, stacks of experts.

    Returns:
        Name → how it differs.
    """
    ours, theirs = _tensors(base), _tensors(tuned)
    skip = ({each.keys[0] for each in matched.values()}, {each.keys[1] for each in matched.values()})
    found = {}
    for key, read in ours.items():
        if key in skip[0]:
            continue
        if key not in theirs:
            found[key] = "only in the base"
            continue
        W, other = read(), theirs[key]()
        if W.shape != other.shape:
            found[key] = f"shape {tuple(W.shape)} became {tuple(other.shape)}"
        elif not torch.equal(W, other.to(W.device, W.dtype)):
            norms = (float(torch.linalg.vector_norm(each)) for each in (other.double() - W.double(), W.double()))
            found[key] = f"changed by {_relative(*norms):.2%} of its norm".replace("%", " %")
    return found | {key: "only in the tuned model" for key in theirs if key not in ours and key not in skip[1]}


def _relative(change: float, norm: float) -> float:
    return change / norm if norm else (math.inf if change else 0.0)


def _known(source: Source) -> dict[str, Held]:
    if isinstance(source, Checkpoint):
        return {each.name: each for each in source.matrices()}
    return dict(matrices_by_name(source))


def _key(held: Held) -> str:
    if isinstance(held, CheckpointMatrix):
        return held.key
    return f"{held.name}.{held.parameter}" if held.parameter == "weight" else held.name


def _stored(source: Source, held: Held) -> tuple[int, ...]:
    """The shape of the parameter."""
    if isinstance(source, Checkpoint):
        assert isinstance(held, CheckpointMatrix)
        return tuple(source.infos[held.key].shape)
    assert isinstance(held, Matrix)
    return tuple(held.as_parameter(held.weight()).shape)


def _reader(source: Source, held: Held, layout: Matrix | None) -> Callable[[], Tensor]:
    """How to read a matrix as (m, n)."""
    if isinstance(held, Matrix):
        return held.weight
    assert isinstance(source, Checkpoint)
    if layout is not None:
        return lambda: layout.as_matrix(source.read(held.key))
    return lambda: source.read(held.key).reshape(held.shape)


def _tensors(source: Source) -> dict[str, Callable[[], Tensor]]:
    """All parameters and kept buffers by the names that they had before anything was adapted."""
    if isinstance(source, Checkpoint):
        return {key: (lambda key=key: source.read(key)) for key in source.infos}  # type: ignore[misc]
    found: dict[str, Callable[[], Tensor]] = {}
    for path, module in modules_before(source):
        own = {**module._parameters, **{k: v for k, v in module._buffers.items() if k not in _dropped(module)}}
        for key, tensor in own.items():
            if tensor is not None:
                found[f"{path}.{key}".lstrip(".")] = lambda tensor=tensor: tensor.detach()  # type: ignore[misc]
    return found


def _dropped(module: nn.Module) -> set[str]:
    return module._non_persistent_buffers_set
