"""The matrices of a model, each once, whatever kind of module or parameter holds them.

Every weight is seen as W of shape (m, n) = (out, in), the orientation of `nn.Linear`:

| kind | held by | stored as | seen as |
|---|---|---|---|
| linear | a module with in_features, out_features and weight | (out, in) | (out, in) |
| conv1d | transformers' Conv1D (it has an attribute nf) | (in, out) | (out, in) |
| conv | Conv1d, Conv2d, Conv3d | (out, in/groups, k, ...) | (out/groups, in/groups · k ...), for each group |
| embedding | Embedding, EmbeddingBag | (words, width) | as stored: the orientation of a tied head |
| experts | a 3-D parameter of an experts module | (E, out, in) or (E, in, out) | (out, in), for each expert |
| attention | MultiheadAttention's in_proj_weight | (3 · width, width) | as stored |

A compressed layer (see `nn.compressed`) is one matrix of the kind that it stands for, whatever it holds.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from torch import Tensor, nn

from eckart.nn.patterns import Patterns, member_name, select
from eckart.nn.standing_in import StandIns
from eckart.nn.weights import Layout, layouts, seen_as


@dataclass(frozen=True)
class Matrix:
    """One matrix of a model (or one stack of equal matrices), where it lives and how to see it as (out, in)."""

    name: str  # the module's path for its `weight`, else the parameter's path
    module: nn.Module = field(repr=False)  # the owner
    parameter: str  # the owner's attribute
    kind: str  # linear, conv1d, conv, embedding, experts, attention
    shape: tuple[int, int]  # (m, n) of each matrix
    stack: int = 1  # how many: experts, or groups of a convolution
    tied: tuple[str, ...] = ()  # the other names of the same storage
    transposed: bool = field(default=False, repr=False)  # stored as (..., in, out)
    changed_by: nn.Module | None = field(default=None, repr=False)  # what adds Δ to the owner's weight, if anything

    @property
    def stored(self) -> bool:
        """Whether a parameter of the owner is the weight; a factored, parametrized or adapted layer computes it.

        Example:
            >>> from eckart.nn import FactoredLinear
            >>> model = nn.Sequential(nn.Linear(3, 3), FactoredLinear.empty(3, 3, rank=1))
            >>> [matrix.stored for matrix in matrices(model)]
            [True, False]
        """
        return self.changed_by is None and self.module._parameters.get(self.parameter) is not None

    def weight(self) -> Tensor:  # (m, n), or (stack, m, n)
        """The weight as (out, in): a view wherever one exists, still attached to autograd (detach it to only look)."""
        return self.as_matrix(getattr(self.changed_by or self.module, self.parameter))

    def as_matrix(self, tensor: Tensor) -> Tensor:  # the parameter's shape -> (m, n) or (stack, m, n)
        """See a tensor shaped as the parameter (a gradient, a moment, an update) as this matrix, (out, in).

        Example:
            >>> conv = nn.Conv2d(4, 8, 3)
            >>> (matrix,) = matrices(nn.Sequential(conv))
            >>> tuple(matrix.as_matrix(conv.weight).shape)
            (8, 36)
        """
        if self.transposed:
            return tensor.transpose(-1, -2)
        if self.kind == "conv":
            return tensor.reshape(*((self.stack,) if self.stack > 1 else ()), *self.shape)
        return tensor

    def members(self, tensor: Tensor | None = None) -> list[tuple[str, Tensor]]:
        """Each matrix with its name: itself, or the members of a stack, named `name[index]`.

        Args:
            tensor: What to see as matrices, of the parameter's shape; None is the weight.

        Example:
            >>> (matrix,) = matrices(nn.Sequential(nn.Conv2d(4, 8, 3, groups=2)))
            >>> [(name, tuple(W.shape)) for name, W in matrix.members()]
            [('0[0]', (4, 18)), ('0[1]', (4, 18))]
        """
        W = self.weight() if tensor is None else self.as_matrix(tensor)
        return [(self.name, W)] if self.stack == 1 else [(member_name(self.name, e), W[e]) for e in range(self.stack)]

    def as_parameter(self, W: Tensor) -> Tensor:  # (m, n) or (stack, m, n) -> the parameter's shape
        """Undo `as_matrix`: give a matrix the shape of the parameter, for writing it back."""
        if self.transposed:
            return W.transpose(-1, -2)
        return W.reshape(getattr(self.module, self.parameter).shape) if self.kind == "conv" else W


def matrices(model: nn.Module, targets: Patterns = None, exclude: Patterns = None) -> list[Matrix]:
    """List the matrices of a model, each storage once.

    A tied weight is one entry, named by its first place, with its other names in `tied`; a pattern may use any of them.
    An adapted matrix keeps the name that it had before; its `weight` is W + Δ of the adapters that are active.

    Args:
        model: any module.
        targets: glob patterns of the names wanted (see `select`); None means all.
        exclude: glob patterns of the names not wanted.

    Returns:
        The matrices in the model's order. What has two or more dimensions and is not among them is told by `left_out`.

    Raises:
        ValueError: there are no matrices, or a pattern matches nothing (the message gives the closest names).

    Example:
        >>> model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=2))
        >>> [(matrix.name, matrix.kind, matrix.stack, matrix.shape) for matrix in matrices(model)]
        [('0', 'linear', 1, (4, 6)), ('2', 'conv', 2, (4, 18))]
        >>> [matrix.name for matrix in matrices(model, exclude="2")]
        ['0']
    """
    found = _all_matrices(model, StandIns(model))
    if not found:
        raise ValueError(
            f"{type(model).__name__} holds no matrices: none of its {len(list(model.parameters()))} parameters is the "
            "floating-point weight of a linear, convolution, embedding, attention or experts layer; left_out says why"
        )
    chosen = _chosen(found, targets, exclude)
    if not chosen:
        raise ValueError(f"no matrices are left of {len(found)}: exclude={exclude!r} drops all of targets={targets!r}")
    return chosen


def left_out(model: nn.Module, targets: Patterns = None, exclude: Patterns = None) -> dict[str, str]:
    """Say which parameters with two or more dimensions `matrices` does not give, and why.

    Args:
        model: any module.
        targets: as for `matrices`.
        exclude: as for `matrices`.

    Returns:
        Parameter name → reason.

    Raises:
        ValueError: a pattern matches nothing.

    Example:
        >>> left_out(nn.Sequential(nn.Linear(3, 3), nn.ConvTranspose1d(2, 2, 3)))
        {'1.weight': 'weight of ConvTranspose1d: not a layer whose matrix is known'}
    """
    through = StandIns(model)
    found = _all_matrices(model, through)
    chosen = {matrix.name for matrix in _chosen(found, targets, exclude)}
    name_of = {name: matrix.name for matrix in found for name in (matrix.name, *matrix.tied)}
    compressed = _compressed(model)
    reasons = {}
    for path, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        owner, attribute = _owner(path)
        whole = _holder(owner, compressed)
        owner, attribute = (owner, attribute) if whole is None else (whole, "weight")
        module = model.get_submodule(owner)
        outer = through.outer(_name(owner, attribute))
        if outer is None:
            continue  # an adapter's own, which acts in the weight that it changes
        name = name_of.get(outer[0])
        if name is None:
            reasons[path] = _reason(module, attribute, parameter)
        elif name not in chosen:
            reasons[path] = "not chosen by targets and exclude"
    return reasons


def _all_matrices(model: nn.Module, through: StandIns | None = None) -> list[Matrix]:
    """Every matrix once, first place first; under the names that its modules have now, or as seen through stand-ins."""
    places: dict[object, list[tuple[str, nn.Module, Layout, nn.Module | None]]] = {}
    compressed = _compressed(model)
    for path, module in model.named_modules(remove_duplicate=False):
        if _holder(path, compressed) not in (None, path):
            continue  # a part of the matrix that a compressed layer is
        for layout in layouts(module, path):
            name = _name(path, layout.parameter)
            outer = (name, None) if through is None else through.outer(name)
            if outer is not None:
                key = _storage(module, layout), id(outer[1])
                places.setdefault(key, []).append((outer[0], module, layout, outer[1]))
    found = []
    for (name, module, first, changed_by), *others in places.values():
        tied = tuple(other[0] for other in others)
        seen = (first.parameter, first.kind, first.shape, first.stack, tied, first.transposed)
        found.append(Matrix(name, module, *seen, changed_by))
    return found


def _compressed(model: nn.Module) -> set[str]:
    """The paths of the compressed layers."""
    return {path for path, module in model.named_modules(remove_duplicate=False) if seen_as(module) is not None}


def _holder(path: str, compressed: Collection[str]) -> str | None:
    """The outermost compressed layer at a path or above it."""
    if not compressed:
        return None
    steps = path.split(".")
    return next((above for above in (".".join(steps[:k]) for k in range(len(steps) + 1)) if above in compressed), None)


def _storage(module: nn.Module, layout: Layout) -> object:
    """What two places of one storage have in common; a computed weight has no storage but its module."""
    W = module._parameters.get(layout.parameter)
    if W is None:
        return id(module), layout.parameter
    return (W.device, W.data_ptr(), W.numel()) if not W.is_meta and W.data_ptr() else id(W)


def _chosen(found: list[Matrix], targets: Patterns, exclude: Patterns) -> list[Matrix]:
    """The matrices that a target names by any of their names, and no exclusion does."""
    names = [name for matrix in found for name in (matrix.name, *matrix.tied)]
    wanted = set(select(names, targets))
    unwanted = set() if exclude is None else set(select(names, exclude))
    return [m for m in found if wanted.intersection((m.name, *m.tied)) and not unwanted.intersection((m.name, *m.tied))]


def _name(path: str, attribute: str) -> str:
    return path if attribute == "weight" and path else f"{path}.{attribute}".lstrip(".")


def _owner(path: str) -> tuple[str, str]:
    """The path of a parameter's module and the attribute; a parametrization's tensors belong to what they compute."""
    owner, parametrized, rest = path.partition("parametrizations.")
    if parametrized:
        return owner.rstrip("."), rest.split(".")[0]
    owner, _, attribute = path.rpartition(".")
    return owner, attribute


def _reason(module: nn.Module, attribute: str, parameter: Tensor) -> str:
    if not parameter.is_floating_point():
        return f"stored as {parameter.dtype}, not in floating point: dequantise it first"
    return f"{attribute} of {type(module).__name__}: not a layer whose matrix is known"
