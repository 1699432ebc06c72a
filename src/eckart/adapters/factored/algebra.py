"""Algebra of adapters that stays factored: sums, truncation and spectra, never an m×n matrix.

    Σ_i w_i Δ_i = [w₁s₁B₁, w₂s₂B₂, …] [A₁; A₂; …]        B = Q_B R_B, Aᵀ = Q_A R_A ⇒ Δ = Q_B (s R_B R_Aᵀ) Q_Aᵀ

An adapter is a mapping of matrix name → LoraPair(B (m, r), A (r, n), scale): `pairs(model, name)` gives one,
`nn.files.lora_pairs(folder)` reads one, `attach` and `write_pairs` take one. A matrix that only some of several
adapters have is zero in the others. Cost: O((m+n)r²) for each matrix. Results are in float32 or wider.

Paper: none; PEFT's add_weighted_adapter(combination_type="svd") forms Δ and takes its full SVD, and "linear" averages
A and B apart, which adds the cross terms B_i A_j.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor

from eckart.linalg import energy_rank, product_sum, product_svd, product_truncate, working_dtype
from eckart.nn.files import LoraPair
from eckart.nn.patterns import closest

Pairs = Mapping[str, LoraPair]


def combine(
    changes: Sequence[Pairs],
    weights: Sequence[float] | None = None,
    *,
    rank: int | Mapping[str, int] | None = None,
    energy: float | None = None,
) -> dict[str, LoraPair]:
    """The weighted sum of adapters, Σ w_i Δ_i: exact, or the best approximation of a lower rank.

    Args:
        changes: The adapters; negative weights subtract (task arithmetic).
        weights: One for each; None for ones.
        rank: As for `truncate`; None with no energy keeps the sum exactly, at the sum of the ranks.
        energy: As for `truncate`.

    Returns:
        Matrix name → pair, of scale 1, for every matrix that any of them has.

    Raises:
        ValueError: No adapters, a number of weights that differs from theirs, shapes that do not agree (the matrix is
            named), and as `truncate`.

    Example:
        >>> import torch
        >>> one = {"q": LoraPair(torch.ones(2, 1), torch.ones(1, 2), 1.0)}
        >>> other = {"q": LoraPair(torch.eye(2)[:, :1], torch.ones(1, 2), 2.0), "v": one["q"]}
        >>> total = combine([one, other], [1.0, -0.5])
        >>> total["q"].B @ total["q"].A, total["v"].B @ total["v"].A
        (tensor([[0., 0.],
                [1., 1.]]), tensor([[-0.5000, -0.5000],
                [-0.5000, -0.5000]]))
    """
    weights = [1.0] * len(changes) if weights is None else list(weights)
    if not changes or len(weights) != len(changes):
        raise ValueError(
            f"weights: {len(weights)} of them for {len(changes)} adapters; give one for each, at least one"
        )
    total = {}
    for name in union(*changes):
        having = [(w, factors(each[name])) for w, each in zip(weights, changes, strict=True) if name in each]
        with naming(name):
            total[name] = LoraPair(*product_sum([pair for _, pair in having], [w for w, _ in having]), 1.0)
    return total if rank is None and energy is None else truncate(total, rank=rank, energy=energy)


def truncate(
    change: Pairs, *, rank: int | Mapping[str, int] | None = None, energy: float | None = None
) -> dict[str, LoraPair]:
    """The best approximation of each matrix's change at a lower rank, with balanced factors.

    Args:
        change: The adapter.
        rank: The largest rank to keep, for all or by matrix (those not named stay whole, 0 drops a matrix).
        energy: Keep the least rank that holds this share of each ‖Δ‖_F², from 0 to 1. With both, the smaller rank.

    Returns:
        Matrix name → pair, of scale 1.

    Raises:
        ValueError: Neither rank nor energy, a name that the adapter has not, a rank below 0 or an energy outside
            [0, 1].

    Example:
        >>> import torch
        >>> change = {"q": LoraPair(torch.diag(torch.tensor([3.0, 1.0])), torch.eye(2), 1.0)}
        >>> truncate(change, energy=0.9)["q"].A.shape, truncate(change, rank={"q": 0})
        (torch.Size([1, 2]), {})
    """
    if rank is None and energy is None:
        raise ValueError("rank: give rank= or energy=, what to truncate to")
    ranks = rank if isinstance(rank, Mapping) else dict.fromkeys(change, rank)
    for name, r in ranks.items():
        if name not in change:
            raise ValueError(f"rank: the adapter has no {name!r}; closest: {closest(name, change, whole=True)}")
        if r is not None and r < (0 if isinstance(rank, Mapping) else 1):
            raise ValueError(f"rank: {r} for {name}; give a whole number of at least 1, or 0 in a dict to drop it")
    cut = {}
    for name, pair in change.items():
        r, whole = ranks.get(name), factors(pair)
        if r is None and energy is None:
            cut[name] = LoraPair(*whole, 1.0)
        elif r != 0:
            cut[name] = LoraPair(*product_truncate(*whole, rank=r, energy=energy), 1.0)
    return cut


def delta_spectra(change: Pairs) -> dict[str, Tensor]:
    """The singular values of each matrix's change.

    Args:
        change: The adapter.

    Returns:
        Matrix name → S (min(m, r, n),), descending, the scale in them.

    Example:
        >>> import torch
        >>> delta_spectra({"q": LoraPair(torch.tensor([[3.0], [4.0]]), torch.ones(1, 1), 2.0)})
        {'q': tensor([10.])}
    """
    return {name: product_svd(*factors(pair))[1] for name, pair in change.items()}


def used_ranks(change: Pairs, energy: float = 0.99) -> dict[str, int]:
    """The ranks really used: the least that hold a share of each ‖Δ‖_F².

    Args:
        change: The adapter.
        energy: The share, from 0 to 1.

    Returns:
        Matrix name → rank; 0 where the change is zero.

    Example:
        >>> import torch
        >>> used_ranks({"q": LoraPair(torch.diag(torch.tensor([3.0, 0.1])), torch.eye(2), 1.0)})
        {'q': 1}
    """
    return {name: int(energy_rank(S, energy)) for name, S in delta_spectra(change).items()}


def factors(pair: LoraPair) -> tuple[Tensor, Tensor]:  # (m, r), (r, n)
    """scale · B and A, in float32 or wider."""
    dtype = working_dtype(pair.B.dtype)
    return pair.scale * pair.B.to(dtype), pair.A.to(dtype)


def union(*changes: Pairs) -> list[str]:
    """The names that any of the adapters has, in order."""
    return list(dict.fromkeys(name for each in changes for name in each))


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Give errors of linalg the name of the matrix."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"changes: {name}: {error}") from None
