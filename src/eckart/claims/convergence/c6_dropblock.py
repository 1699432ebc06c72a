"""C6: dropping blocks of k columns is a squared k-support norm, shared equally by the blocks."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from eckart.claims.claim import Check, Claim, Line, Panel, Result
from eckart.claims.convergence.masked_factors import (
    MASKED,
    Penalty,
    agreement,
    matrix_of,
    measure_penalty,
    random_factors,
    train_with_masks,
)
from eckart.linalg import prox_vector_k_support_squared, singular_values, vector_k_support_norm
from eckart.nn import Progress
from eckart.regularizers import dropblock_penalty, fit_factors, odds

Prox = Callable[[Tensor, int, float], Tensor]  # (σ, k, λ) → the spectrum of the optimum


class Sizes(NamedTuple):
    """Spectra of the targets (m, n), block sizes, the number of blocks, masks, and steps with drawn masks."""

    values: tuple[float, ...] = (5.0, 4.2, 3.0, 2.0, 1.0)
    unpaired: tuple[float, ...] = (3.0, 3.0, 3.0, 1.0)
    m: int = 12
    n: int = 10
    sizes: tuple[int, ...] = (1, 2, 3)
    blocks: int = 6
    rate: float = 0.4
    masks: int = 3000
    steps: int = 600


SIZES = {"small": Sizes(), "paper": Sizes(masks=50_000, steps=5000)}


def run(
    seed: int,
    size: str,
    *,
    progress: Progress | None = None,
    penalty: Penalty = dropblock_penalty,
    prox: Prox = prox_vector_k_support_squared,
) -> Result:
    """Descend on the penalised objective for blocks of 1, 2 and 3 columns, on a generic and on a flat spectrum.

    Args:
        seed: of the matrices, the starts and the masks.
        size: "small" or "paper".
        progress: called after every descent.
        penalty: what is taken for DropBlock's.
        prox: (σ, k, λ) → the predicted spectrum.
    """
    sizes = SIZES[size]
    generator = torch.Generator().manual_seed(seed)
    Y = matrix_of(sizes.values, sizes.m, sizes.n, generator)
    total = 2 * len(sizes.sizes) + 2
    report = progress or (lambda done, total, label: None)
    checks, spectra = [], []
    for index, block in enumerate(sizes.sizes):
        checks.append(_monte_carlo(Y, block, sizes, penalty, generator))
        found, spectrum = _optimum(Y, block, sizes, penalty, prox, generator)
        checks += found
        spectra.append(spectrum)
        report(2 * index + 1, total, f"blocks of {block}")
        checks.append(_flat(block, sizes, penalty, generator))
        report(2 * index + 2, total, f"blocks of {block}, flat spectrum")
    checks.append(_drawn(Y, sizes, prox, generator))
    report(total - 1, total, "trained with drawn masks")
    checks.append(_too_few(sizes, penalty, generator))
    report(total, total, "too few blocks")
    note = (
        "Larger blocks punish a large spectrum less: directions within one block are not made to compete, so leading "
        "values shrink in proportion and the tail by a threshold. Two blocks of two can't share a spectrum whose "
        "values do not pair up; there the closed form is a bound that training stays above."
    )
    return Result(checks, [_panel(sizes, spectra, prox)], note)


def _monte_carlo(Y: Tensor, block: int, sizes: Sizes, penalty: Penalty, generator: torch.Generator) -> Check:
    U, V = random_factors(sizes.m, sizes.m, 2 * sizes.blocks * block, generator)
    measured = measure_penalty(MASKED["DropBlock"], U, V, Y, sizes.rate, sizes.masks, generator, block=block)
    formula = float(penalty(U, V, sizes.rate, block, inputs=Y))
    return agreement(f"what blocks of {block} add to the loss", formula, measured)


def _fit(
    Y: Tensor, block: int, blocks: int, sizes: Sizes, penalty: Penalty, generator: torch.Generator
) -> tuple[Tensor, Tensor, float]:
    added = partial(penalty, rate=sizes.rate, block=block)
    return fit_factors(Y, block * blocks, added, generator=generator)


def _optimum(
    Y: Tensor, block: int, sizes: Sizes, penalty: Penalty, prox: Prox, generator: torch.Generator
) -> tuple[list[Check], Tensor]:
    U, V, _ = _fit(Y, block, sizes.blocks, sizes, penalty, generator)
    spectrum = singular_values(U @ V.mT)[: len(sizes.values)]
    weight = odds(sizes.rate) / sizes.blocks
    wanted = prox(torch.tensor(sizes.values, dtype=torch.float64), block, weight)
    left, right = (factor.mT.unflatten(0, (sizes.blocks, block)) for factor in (U, V))
    norms = (left.mT @ right).flatten(1).norm(dim=1)
    paid = float(penalty(U, V, sizes.rate, block))
    norm = float(vector_k_support_norm(spectrum, block))
    checks = [
        Check(f"largest |σ_i − closed form|, k = {block}", 0.0, float((spectrum - wanted).abs().max()), 5e-5, "≤"),
        Check(f"penalty over (c/B)‖σ‖_k², k = {block}", 1.0, paid / (weight * norm**2), 1e-6),
        Check(f"std/mean of ‖U_bV_bᵀ‖, k = {block}", 0.0, float(norms.std() / norms.mean()), 1e-6, "≤"),
    ]
    return checks, spectrum


def _flat(block: int, sizes: Sizes, penalty: Penalty, generator: torch.Generator) -> Check:
    """On a flat spectrum of rank r the norm is ‖·‖_*/√k, and each σ becomes σ/(1 + λr/k)."""
    rank = 6
    Y = matrix_of((3.0,) * rank, sizes.m, sizes.n, generator)
    U, V, _ = _fit(Y, block, sizes.blocks, sizes, penalty, generator)
    wanted = 3.0 / (1 + odds(sizes.rate) / sizes.blocks * rank / block)
    error = float((singular_values(U @ V.mT)[:rank] - wanted).abs().max())
    return Check(f"largest |σ_i − σ/(1 + λr/k)|, flat spectrum, k = {block}", 0.0, error, 5e-5, "≤")


def _drawn(Y: Tensor, sizes: Sizes, prox: Prox, generator: torch.Generator) -> Check:
    """Real DropBlock, masks and all, ends at the same spectrum."""
    width = 2 * sizes.blocks
    U, V = train_with_masks(MASKED["DropBlock"], Y, width, sizes.rate, sizes.steps, generator, block=2)
    weight = odds(sizes.rate) / sizes.blocks
    wanted = prox(torch.tensor(sizes.values, dtype=torch.float64), 2, weight)
    error = float((singular_values(U @ V.mT)[: len(wanted)] - wanted).abs().max())
    return Check("largest |σ_i − closed form| after training with drawn masks, k = 2", 0.0, error, 0.1, "≤")


def _too_few(sizes: Sizes, penalty: Penalty, generator: torch.Generator) -> Check:
    """Two planes share a spectrum equally only if it pairs up; if not, the least of several descents is above."""
    Y = torch.diag(torch.tensor(sizes.unpaired, dtype=torch.float64))
    weight = odds(sizes.rate) / 2
    values = prox_vector_k_support_squared(Y.diagonal(), 2, weight)
    bound = float((Y.diagonal() - values).square().sum() + weight * vector_k_support_norm(values, 2).square())
    least = min(_fit(Y, 2, 2, sizes, penalty, generator)[2] for _ in range(3))
    return Check("where it stops, B = k = 2: least objective found over the closed form", 1.02, least / bound, 0.0, "≥")


def _panel(sizes: Sizes, spectra: list[Tensor], prox: Prox) -> Panel:
    index = list(range(1, len(sizes.values) + 1))
    target = torch.tensor(sizes.values, dtype=torch.float64)
    lines = [Line("σ of the target", index, sizes.values)]
    for block, spectrum in zip(sizes.sizes, spectra, strict=True):
        wanted = prox(target, block, odds(sizes.rate) / sizes.blocks)
        lines.append(Line(f"trained, k = {block}", index, spectrum.tolist(), "points"))
        lines.append(Line(f"closed form, k = {block}", index, wanted.tolist(), "dashed"))
    return Panel(f"DropBlock with {sizes.blocks} blocks of k columns", "index i", "σ_i of the product", lines)


CLAIM = Claim(
    id="C6",
    title="DropBlock is a squared k-support norm",
    statement="Dropping blocks of k columns between two linear layers has the optimum of (c/B)(‖Z‖_k^sp)², the "
    "k-support norm of the spectrum, with blocks of equal norm; k = 1 is nuclear, a flat spectrum pays ‖Z‖_*/√k.",
    source="arXiv 1910.14186; where few blocks stop it is our finding",
    half="convergence",
    regime="two linear layers, squared loss, enough blocks; with few blocks of k ≥ 2 the closed form is a lower bound",
    run=run,
)
