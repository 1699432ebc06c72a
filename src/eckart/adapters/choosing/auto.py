"""`rank="auto"`: ranks, targets and α from what the loss's gradient says of each matrix, under a budget of parameters.

To first order a change Δ_l of the matrices W_l changes the loss by Σ_l ⟨G_l, Δ_l⟩, G_l (m, n) its gradient. Of all
changes of rank r_l with Σ_l ‖Δ_l‖²_F ≤ ρ² the largest decrease comes from the leading r_l singular triplets of each
G_l, in proportion to G itself, and is

    ρ · √( Σ_l Σ_{i ≤ r_l} σ_i(G_l)² ).

So the ranks that reach most of it under Σ_l r_l (m_l + n_l) ≤ budget are those of `linalg.allocate` on the σ's, and the
share of Σ_l ‖G_l‖² that they capture says how much. A matrix with rank 0 is not adapted: this chooses targets too.

A gradient of few batches is mostly noise, of full rank and with energy of its own. The batches are therefore split into
two halves, with gradients G and G′ that share the signal and not the noise. With G = Σ s_i u_i v_iᵀ,

    c_i = u_iᵀ G′ v_i,    E[ s_i c_i | G ] = s_i · u_iᵀ E[G] v_i,    Σ_i s_i c_i = ⟨G, G′⟩,    E ⟨G, G′⟩ = ‖E[G]‖²_F:

s_i c_i is the part of the decrease on fresh data that a step along the i-th direction of G makes, without bias. Both
ways round are averaged, made to fall with i by the nearest falling sequence (isotonic regression: what remains of the
noise has mean zero and averages out there), cut at 0, which leaves noise alone a few hundredths of its energy, and used
in the place of σ_i².

This speaks of the first step alone; later the gradient turns to what the other matrices have left over. So every
matrix whose halves agree beyond chance, ⟨G, G′⟩ > 3 ‖G‖ ‖G′‖/√(mn), is given one direction first, as long as that takes
no more than half of the budget. (In trials on a small model the rule without this gave 0.009 more loss than uniform
ranks in one seed, and with it 0.002 and 0.006 less in two others.)

α: Δ = s Σ_i b_i a_iᵀ moves along each direction at a speed that depends on s and not on r, so s is the same for all
matrices: α divided by the rank that all would have had at this budget (`Settings.scaled_as`), not by each one's own,
under which s would fall from the first rank to the highest by their ratio. Scaling each by 1/√r_l, which makes
‖Δ‖_F at the first step of Adam the same at all ranks, gave higher losses in the three comparisons made.

Cost: two observed passes over half the batches each, for each block of matrices whose two gradients fit in `memory`; an
SVD of the leading directions of each gradient: 8 times as many as one rank for all would have, at least 16, which is
also the highest rank that can come out.
Paper: none; EVA 2410.07170 shares ranks by the variance of the inputs, which sees no loss. Measured against uniform
ranks by benchmarks/auto_rank.py.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eckart.adapters.choosing.observing import observe_bases
from eckart.linalg import allocate, map_side_by_side, truncated_svd
from eckart.nn import Matrix, Observation, Progress

MEMORY = 2**31  # bytes of gradients held at a time


class Choice(NamedTuple):
    """What was chosen, and why."""

    ranks: dict[str, int]  # matrix name → rank of at least 1
    scaled_as: int  # the one rank that all matrices would have at this budget, by which α is divided
    evidence: dict[str, Any]  # matrix name → what was measured, rank 0 included


def choose_ranks(
    model: nn.Module,
    found: Sequence[Matrix],
    budget: float | int | str | None,
    batches: Iterable[Any] | None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    progress: Progress | None = None,
    *,
    memory: int = MEMORY,
) -> Choice:
    """Ranks for some matrices of a model.

    Args:
        model: The model, adapted or not; adapters that it has are disabled meanwhile.
        found: The matrices that may be adapted.
        budget: Parameters of all B and A together: a number, a share of the model's parameters, or "1%".
        batches: At least two, as `nn.observe` takes them; every second one is of the other half.
        loss: (output, batch) → scalar; None takes the output's own.
        forward: (model, batch) → output, for batches that the model does not take as they are.
        progress: Called as progress(done, total, label).
        memory: Bytes of gradients held at a time; more passes are made over the batches where less fits.

    Returns:
        Choice: ranks of at least 1 of those that are adapted, the rank that α is meant for, and for each matrix the
        evidence: rank, parameters, energy ‖E[G]‖² as estimated, agreement ⟨G, G′⟩/(‖G‖ ‖G′‖) of the halves, captured
        and captured_by_uniform, the shares of the energy that its rank and the uniform rank reach.

    Raises:
        ValueError: No budget or one that buys no direction, fewer than two batches, or halves that agree on nothing.

    Example:
        >>> from eckart.adapters.choosing.targets import chosen
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        >>> _ = nn.init.eye_(model[1].weight)
        >>> inputs = torch.randn(4, 64, 8, generator=torch.Generator().manual_seed(0))
        >>> loss = lambda y, x: (y[..., 0] - 9 * x[..., 0]).square().mean()  # one direction of each matrix matters
        >>> choose_ranks(model, chosen(model), 64, list(inputs), loss).ranks
        {'0': 1, '1': 1}
    """
    budget = parameters_of(model, budget)
    halves = _halves(batches)
    alike = budget / sum(matrix.stack * sum(matrix.shape) for matrix in found)
    width = max(16, round(8 * alike))
    seen: dict[str, dict[str, Any]] = {}

    def gradients(block: list[Matrix], half: list[Any]) -> dict[str, Observation]:
        return observe_bases(model, block, ["gradient"], half, loss, forward, progress)

    for block in _blocks(found, memory):
        seen |= _measured(block, halves, gradients, width)
        if progress is not None:
            progress(len(seen), len(found), "measuring gradients")
    return _chosen(found, seen, budget, alike)


def parameters_of(model: nn.Module, budget: float | int | str | None) -> int:
    """The budget as a number of parameters.

    Example:
        >>> parameters_of(nn.Linear(99, 10), "1%"), parameters_of(nn.Linear(99, 10), 0.5)
        (10, 500)
    """
    value: float | None = None
    if isinstance(budget, str) and budget.strip().endswith("%"):
        try:
            value = float(budget.strip()[:-1]) / 100
        except ValueError:
            value = None
        share = True
    elif isinstance(budget, (int, float)) and not isinstance(budget, bool):
        value, share = float(budget), isinstance(budget, float) and budget < 1
    if value is None or not (0 < value < 1 if share else value >= 1 and value == int(value)):
        raise ValueError(
            f'budget: {budget!r}; rank="auto" takes a number of parameters, or a share of the model\'s such as "1%" or '
            "0.01"
        )
    return round(value * sum(parameter.numel() for parameter in model.parameters())) if share else int(value)


def _halves(batches: Iterable[Any] | None) -> tuple[list[Any], list[Any]]:
    held = [] if batches is None else list(batches)
    if len(held) < 2:
        raise ValueError(
            f'batches: {len(held)}; rank="auto" compares the gradients of two halves of them: give at least two, '
            "better sixteen"
        )
    return held[::2], held[1::2]


def _blocks(found: Sequence[Matrix], memory: int) -> Iterator[list[Matrix]]:
    """Matrices in order, as many as two gradients of each fit."""
    block: list[Matrix] = []
    held = 0
    for matrix in found:
        m, n = matrix.shape
        size = 2 * 4 * matrix.stack * m * n
        if block and held + size > memory:
            yield block
            block, held = [], 0
        block.append(matrix)
        held += size
    yield block


def _measured(
    block: list[Matrix],
    halves: tuple[list[Any], list[Any]],
    gradients: Callable[[list[Matrix], list[Any]], dict[str, Observation]],
    width: int,
) -> dict[str, dict[str, Any]]:
    """Matrix name → its energies, falling, and how far the halves agree; those without a gradient are left out."""
    first, second = (gradients(block, half) for half in halves)
    pairs = {}
    for name in [matrix.name for matrix in block]:
        one, other = (seen[name].gradient if name in seen else None for seen in (first, second))
        if one is not None and other is not None:
            pairs[name] = (one, other)
    workers = None if all(G.device.type == "cpu" for G, _ in pairs.values()) else 1
    results = map_side_by_side(lambda pair: _agreed(*pair, width), pairs.values(), workers=workers)
    return dict(zip(pairs, results, strict=True))


def _agreed(G: Tensor, H: Tensor, width: int) -> dict[str, Any]:
    """The energies s_i c_i of the leading directions, both ways round; those of a stack are added up."""
    energies = sum(_crossed(*pair, width) for pair in ((G, H), (H, G))) / 2
    assert isinstance(energies, Tensor)
    inner, size = float((G * H).sum()), float(G.norm() * H.norm())
    falling = torch.tensor(_falling(energies.tolist()), dtype=torch.float64).clamp_min(0)
    agreement = inner / size if size else 0.0
    return {"energies": falling, "energy": max(inner, float(falling.sum())), "agreement": agreement}


def _crossed(G: Tensor, H: Tensor, width: int) -> Tensor:  # (k,) float64
    U, S, Vh = truncated_svd(G, min(width, *G.shape[-2:]))
    energies = (S * ((U.mT @ H) * Vh).sum(-1)).double()
    return energies if energies.ndim == 1 else energies.sum(0)


def _falling(values: list[float]) -> list[float]:
    """The nearest non-increasing sequence in squared error: neighbours that rise are replaced by their mean."""
    runs: list[tuple[float, int]] = []
    for value in values:
        runs.append((value, 1))
        while len(runs) > 1 and runs[-2][0] < runs[-1][0]:
            (high, count), (low, before) = runs.pop(), runs.pop()
            runs.append(((high * count + low * before) / (count + before), count + before))
    return [mean for mean, count in runs for _ in range(count)]


def _chosen(found: Sequence[Matrix], seen: dict[str, dict[str, Any]], budget: int, alike: float) -> Choice:
    """Ranks on the measured energies, and the evidence."""
    held = {matrix.name: matrix for matrix in found if matrix.name in seen}
    cost = {name: (matrix.stack * matrix.shape[0], matrix.stack * matrix.shape[1]) for name, matrix in held.items()}
    spectra = {name: each["energies"].sqrt() for name, each in seen.items()}
    limits = {name: int((S > 0).sum()) for name, S in spectra.items()}
    floors = {name: 1 for name, each in seen.items() if limits[name] and _beyond_chance(each, held[name])}
    affordable = sum(sum(cost[name]) for name in floors) <= budget / 2
    ranks = allocate(spectra, cost, budget, dense=False, ceiling=limits, floor=floors if affordable else 0)
    if not any(ranks.values()):
        least = min((sum(shape) for shape in cost.values()), default=0)
        raise ValueError(
            f"budget: {budget} parameters buy no direction (the cheapest costs {least})"
            if budget < least
            else "batches: the gradients of their two halves agree on no direction; give more or larger batches"
        )
    same = max(1, round(alike))
    evidence: dict[str, Any] = {}
    for name, each in seen.items():
        energies, total = each["energies"], each["energy"] or 1.0
        evidence[name] = {
            "rank": ranks[name],
            "parameters": ranks[name] * sum(cost[name]),
            "energy": each["energy"],
            "agreement": round(each["agreement"], 4),
            "captured": round(float(energies[: ranks[name]].sum()) / total, 4),
            "captured_by_uniform": round(float(energies[:same].sum()) / total, 4),
        }
    return Choice({name: r for name, r in ranks.items() if r}, same, evidence)


def _beyond_chance(seen: dict[str, Any], matrix: Matrix) -> bool:
    """Whether the halves agree by more than three standard deviations of two gradients of independent entries."""
    m, n = matrix.shape
    return seen["agreement"] > 3 / (matrix.stack * m * n) ** 0.5
