"""What `observe` returns: the statistics of one matrix, and how the running sums become them."""

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eckart.nn.matrices import Matrix
from eckart.nn.observer import Observer
from eckart.nn.reads import Reads
from eckart.nn.statistics import Statistics


@dataclass(frozen=True, eq=False)
class Observation:
    """Statistics of one matrix W (m, n), or of a stack of them, over the rows that it read.

    Fields not asked for, or not observable for this matrix, are None. Everything is float32 (float64 for a float64
    model) except the sample, which keeps the input's dtype. A stack has a leading dimension in every field but
    `input_sample`, whose rows are drawn from the rows of the whole stack; each of its matrices is averaged over its own
    rows, and one that read none has zeros.
    """

    name: str
    tokens: int  # rows counted, padding left out; for experts over all of them, for a convolution its positions
    stack_tokens: Tensor | None = field(default=None, repr=False)  # (stack,) rows of each matrix of a stack
    input_sum: Tensor | None = field(default=None, repr=False)  # (n,) Σ x
    covariance: Tensor | None = field(default=None, repr=False)  # (n, n) Σ (x − mean)(x − mean)ᵀ / tokens
    input_norms: Tensor | None = field(default=None, repr=False)  # (n,) √(Σ x² / tokens): each input channel's RMS
    input_sample: Tensor | None = field(default=None, repr=False)  # (≤ sample_size, n) rows without replacement
    output_gradient_second_moment: Tensor | None = field(default=None, repr=False)  # (m, m) Σ g gᵀ / tokens
    gradient: Tensor | None = field(default=None, repr=False)  # (m, n) ∂loss/∂W, mean over batches of equal weight
    shared_with: tuple[str, ...] = ()  # matrices whose input statistics are these very tensors

    @property
    def mean(self) -> Tensor:  # (n,)
        """The mean row.

        Example:
            >>> Observation("a", tokens=4, input_sum=torch.tensor([2.0, 8.0])).mean
            tensor([0.5000, 2.0000])
        """
        total = self._wanted("input_sum")
        return total / (self.tokens if self.stack_tokens is None else _per_row(self.stack_tokens, total))

    @property
    def input_second_moment(self) -> Tensor | None:  # (n, n)
        """Σ x xᵀ / tokens, the uncentred second moment, made anew at each call; None where it was not observed.

        Example:
            >>> Observation("a", 2, input_sum=torch.tensor([2.0, 4.0]), covariance=torch.eye(2)).input_second_moment
            tensor([[2., 2.],
                    [2., 5.]])
        """
        if self.covariance is None:
            return None
        mean = self.mean
        return self.covariance + mean.unsqueeze(-1) * mean.unsqueeze(-2)

    def _wanted(self, name: str) -> Tensor:
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"{name} of {self.name} was not observed: ask for 'input_covariance' in wanted")
        return value


def collect(
    matrices: Sequence[Matrix], observer: Observer, reads: Reads, wanted: Collection[str], batches: int
) -> dict[str, Observation]:
    """Turn the running sums (which it uses up) into observations, and warn by name of what is missing."""
    if observer.counts and not any(map(any, observer.counts.values())):
        raise ValueError(f"no rows to count in {batches} batches: attention_mask hides every token, or they are empty")
    inputs = _input_fields(observer, wanted)
    found = {}
    for matrix in matrices:
        name = matrix.name
        fields = inputs.get(name, {}) | _gradient_fields(matrix, observer, wanted, batches)
        if fields:
            counts = torch.tensor(observer.counts.get(name) or observer.looked_up.get(name) or [0] * matrix.stack)
            tokens = int(counts.sum() if matrix.kind == "experts" else counts[0])
            group = observer.sharing.group_of.get(name)
            others = tuple(other for other in group.members if other != name) if group is not None else ()
            found[name] = Observation(name, tokens, counts if matrix.stack > 1 else None, shared_with=others, **fields)
    _warn(matrices, found, reads, wanted)
    if not found:
        raise ValueError(f"nothing was observed of {', '.join(m.name for m in matrices[:5])}: see the warnings")
    return found


def _input_fields(observer: Observer, wanted: Collection[str]) -> dict[str, dict[str, Tensor]]:
    """The input fields of each matrix: one set of tensors for a group."""
    fields = {}
    for group in {id(group): group for group in observer.sharing.group_of.values()}.values():
        counts = observer.counts[group.members[0]]
        if any(counts):
            shared = _means(group.total, torch.tensor(counts), wanted)
            fields.update(dict.fromkeys(group.members, shared))
    return fields


def _means(total: Statistics, counts: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
    fields = {"input_sum": total.sum.to(total.dtype)}
    if "input_norms" in wanted:
        squares = total.squared_norms()
        fields["input_norms"] = (squares / _per_row(counts, squares)).sqrt()
    scatter = total.scatter
    if scatter is not None:
        fields["covariance"] = scatter.div_(_per_row(counts, scatter))
    fields = {name: value if len(counts) > 1 else value[0] for name, value in fields.items()}
    return fields | ({"input_sample": total.rows} if "input_sample" in wanted else {})


def _gradient_fields(matrix: Matrix, observer: Observer, wanted: Collection[str], batches: int) -> dict[str, Tensor]:
    fields, name = {}, matrix.name
    if "gradient" in wanted and observer.weights is not None:
        G = observer.weights.sums.pop(name, None)
        if G is not None:
            fields["gradient"] = matrix.as_matrix(G.div_(batches)).contiguous()
        elif name in observer.gradients:
            fields["gradient"] = observer.gradients.pop(name) / batches
    if name in observer.outputs:
        moments = observer.outputs.pop(name).moments()
        moments /= _per_row(torch.tensor(observer.counts[name]), moments)
        fields["output_gradient_second_moment"] = moments if matrix.stack > 1 else moments[0]
    return fields


def _per_row(counts: Tensor, total: Tensor) -> Tensor:  # (stack,), (stack, ...) -> (stack, 1...)
    """The divisor that turns sums into means; one where nothing was counted."""
    return counts.clamp(min=1).to(total).reshape(-1, *[1] * (total.ndim - 1))


def _warn(matrices: Sequence[Matrix], found: dict[str, Observation], reads: Reads, wanted: Collection[str]) -> None:
    """Say by name what was asked for and is missing, or is not what it seems."""
    missing: dict[str, list[str]] = {}

    def lacks(matrix: Matrix, field: str) -> bool:
        return matrix.name not in found or getattr(found[matrix.name], field) is None

    of_products = set(wanted) - {"gradient"}
    for matrix in matrices:
        note = reads.weights.notes.get(matrix.name)
        if note is not None and of_products:
            missing.setdefault(f"statistics left out, at least in part: the weight {note}", []).append(matrix.name)
        elif matrix.kind != "embedding":
            if any(name.startswith("input_") for name in wanted) and lacks(matrix, "input_sum"):
                missing.setdefault(f"inputs left out: {_UNUSED}", []).append(matrix.name)
            if "output_gradient_covariance" in wanted and lacks(matrix, "output_gradient_second_moment"):
                missing.setdefault("output gradients left out: no gradient came there", []).append(matrix.name)
        if "gradient" in wanted and lacks(matrix, "gradient"):
            missing.setdefault("gradient left out: the loss does not depend on the weight", []).append(matrix.name)
    if reads.whole:
        missing["padding counted too: the input cannot be matched to attention_mask"] = sorted(reads.whole)
    for shape in reads.unread:
        warnings.warn(
            f"observe: attention_mask of shape {shape} is not (batch, tokens): every row was counted", stacklevel=4
        )
    for complaint, names in missing.items():
        warnings.warn(f"observe: {complaint}: {', '.join(names)}", stacklevel=4)


_UNUSED = "the weight is not used on these batches, or not by an operation that can be followed"
