"""Extract an adapter from two models: the best factors of low rank of what tuning changed, one matrix at a time.

    Δ = W_tuned − W_base,      B A = the rank-r SVD of Δ, or with batches the minimiser of ‖(Δ − B A) C^{1/2}‖_F,

where C = E[x xᵀ] is the second moment of the layer's inputs: then B A x approximates Δ x where the data are.
Cost: one SVD for each matrix (with batches one observed pass and an `eigh` of min(m, n)); memory of two matrices.

Paper: none; peers take the plain SVD of Δ.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eckart.adapters.adapting import Adaptation
from eckart.adapters.factored.differences import Source, both, differences
from eckart.adapters.factored.pairing import attach
from eckart.adapters.layers.place import places
from eckart.linalg import (
    allocate,
    approximation_error,
    balance,
    energy_rank,
    singular_values,
    truncated_svd,
    weighted_approximation,
    weighted_singular_values,
)
from eckart.nn import Patterns, Progress, observe
from eckart.nn.files import LoraPair
from eckart.nn.patterns import closest


class Found(NamedTuple):
    """What was extracted of one matrix."""

    rank: int
    captured: float  # share of ‖Δ‖_F², or with batches of ‖Δ C^{1/2}‖_F², that the factors hold
    norm: float  # ‖Δ‖_F
    size: float  # ‖Δ‖_F / ‖W_base‖_F


@dataclass(frozen=True)
class Extraction:
    """What `extract` found.

    Example:
        >>> base, tuned = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        >>> print(extract(nn.Sequential(base), nn.Sequential(tuned), rank=4))
        1 matrix of rank 4, with at least 100.0 % of each change (0)
    """

    pairs: dict[str, LoraPair]  # of scale 1
    matrices: dict[str, Found]
    others: dict[str, str]  # what else differs and is not in the pairs: name → how

    def put(self, model: nn.Module, name: str = "default") -> Adaptation:
        """Put the pairs on a model (the base) as a named adapter; see `attach`."""
        return attach(model, self.pairs, name)

    def __str__(self) -> str:
        ranks = sorted({each.rank for each in self.matrices.values()})
        worst = min(self.matrices, key=lambda name: self.matrices[name].captured, default=None)
        count = f"{len(self.matrices)} {'matrix' if len(self.matrices) == 1 else 'matrices'}"
        if worst is None:
            return "0 matrices" + self._left()
        said = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
        share = f"{self.matrices[worst].captured:.1%}".replace("%", " %")
        return f"{count} of {said}, with at least {share} of each change ({worst})" + self._left()

    def _left(self) -> str:
        some = ", ".join(list(self.others)[:3]) + (", …" if len(self.others) > 3 else "")
        return f"; {len(self.others)} other differences are left out ({some})" if self.others else ""


def extract(
    base: Source,
    tuned: Source,
    *,
    rank: int | Mapping[str, int] | None = None,
    energy: float | None = None,
    budget: int | None = None,
    targets: Patterns = None,
    exclude: Patterns = None,
    batches: Iterable[Any] | None = None,
    progress: Progress | None = None,
) -> Extraction:
    """The adapter that makes one model into another, as nearly as its rank allows.

    Args:
        base: A module, or `nn.files.open_checkpoint(path)`, whose names and orientation are the file's.
        tuned: What it was tuned to, likewise.
        rank: One for all (at most min(m, n) of each), or matrix name → rank (those not named are left out).
        energy: The least rank of each matrix that holds this share of its change, 0 to 1.
        budget: Parameters to spend on all matrices together, shared out by their spectra.
        targets: Glob patterns of the matrices; None: of a module every linear and convolution layer but the head, of a
            checkpoint all matrices.
        exclude: Patterns of matrices to leave out.
        batches: Batches as `nn.observe` takes them, to weigh the change by the inputs of the tuned model, or of the
            base where only that is a module. Embeddings have none.
        progress: Called as progress(done, total, label) during long work.

    Returns:
        Extraction: pairs for the matrices that changed, how much of each they hold, and what else differs.

    Raises:
        ValueError: Not exactly one of rank, energy and budget; a pattern or rank that names nothing; a matrix that
            `tuned` has not, or in another shape; adapters on `tuned` (merge them first); batches without a module.

    Example:
        >>> base = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
        >>> tuned = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
        >>> _ = tuned.load_state_dict(base.state_dict())
        >>> with torch.no_grad():
        ...     _ = tuned[0].weight.add_(torch.outer(torch.ones(3), torch.arange(3.0))), tuned[1].bias.add_(1)
        >>> found = extract(base, tuned, rank=1)
        >>> found.pairs["0"].B.shape, round(found.matrices["0"].captured, 4), list(found.others)
        (torch.Size([3, 1]), 1.0, ['1.bias'])
    """
    if [rank, energy, budget].count(None) != 2:
        raise ValueError("rank: give exactly one of rank=, energy= and budget=")
    if isinstance(tuned, nn.Module) and any(place.active for place in places(tuned).values()):
        raise ValueError("tuned: it has active adapters, and its weights are without them; merge them first")
    matched = both(base, tuned, targets, exclude)
    metrics = _metrics(base, tuned, batches, list(matched), progress)
    ranks = _ranks(rank, matched, metrics, budget)
    found, pairs, others = {}, {}, differences(base, tuned, matched)
    for done, (name, matrix) in enumerate(matched.items(), 1):
        delta, size = matrix.delta()
        if bool(delta.any()) and ranks.get(name, 1):
            pairs[name], found[name] = _fit(delta, size, ranks.get(name), energy, metrics.get(name))
        elif bool(delta.any()):
            others[name] = f"changed by {size:.2%} of its norm; no rank for it".replace("%", " %")
        if progress is not None:
            progress(done, len(matched), "extracting")
    return Extraction(pairs, found, others)


def _ranks(
    rank: int | Mapping[str, int] | None, matched: Mapping[str, Any], metrics: Mapping[str, Tensor], budget: int | None
) -> dict[str, int]:
    """The rank of each matrix, 0 for those to leave out; empty where energy decides."""
    if isinstance(rank, Mapping):
        for name in rank:
            if name not in matched:
                raise ValueError(f"rank: {name!r} is not a matrix to extract; closest: {closest(name, matched)}")
        return {name: rank.get(name, 0) for name in matched}
    if rank is not None:
        if rank < 1:
            raise ValueError(f"rank: {rank}; give a whole number of at least 1")
        return dict.fromkeys(matched, rank)
    if budget is None:
        return {}
    spectra, shapes = {}, {}
    for name, matrix in matched.items():
        delta, _ = matrix.delta()
        spectra[name], shapes[name] = _spectrum(delta, metrics.get(name)), matrix.shape
    return allocate(spectra, shapes, budget, dense=False)


def _metrics(
    base: Source, tuned: Source, batches: Iterable[Any] | None, names: list[str], progress: Progress | None
) -> dict[str, Tensor]:
    """C of each matrix that reads rows."""
    if batches is None:
        return {}
    model = next((each for each in (tuned, base) if isinstance(each, nn.Module)), None)
    if model is None or places(model):
        what = "one of the models must be a module without adapters" if model is None else "it has adapters on it"
        raise ValueError(f"batches: the model that reads them must be a plain module; {what}")
    seen = observe(model, batches, ["input_covariance"], targets=names, progress=progress)
    moments = {name: each.input_second_moment for name, each in seen.items()}
    return {name: C for name, C in moments.items() if C is not None}


def _spectrum(delta: Tensor, C: Tensor | None) -> Tensor:
    return singular_values(delta) if C is None else weighted_singular_values(delta, input_covariance=C)


def _fit(
    delta: Tensor, size: float, rank: int | None, energy: float | None, C: Tensor | None
) -> tuple[LoraPair, Found]:
    """The best factors of one change."""
    if rank is None:
        rank = max(1, int(energy_rank(_spectrum(delta, C), energy)))  # type: ignore[arg-type]
    rank = min(rank, *delta.shape)
    norm = float(torch.linalg.matrix_norm(delta.double()))
    if C is None:
        U, S, Vh = truncated_svd(delta, rank)
        B, A = U * S.sqrt(), S.sqrt().unsqueeze(-1) * Vh
        captured = float(S.double().square().sum()) / norm**2
    else:
        B, A = balance(*weighted_approximation(delta, rank, input_covariance=C))
        whole = float(approximation_error(delta, 0 * B, A, input_covariance=C))
        missed = float(approximation_error(delta, B, A, input_covariance=C))
        captured = 1 - (missed / whole) ** 2 if whole else 1.0
    return LoraPair(B, A, 1.0), Found(rank, min(captured, 1.0), norm, size)
