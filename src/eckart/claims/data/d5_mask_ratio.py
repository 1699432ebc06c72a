"""D5: on digits, a masked autoencoder's representation loses effective rank as more is hidden, and gets better by it.

The encoder 64 → 128 → 32 and its mirror see scikit-learn's 1797 digits of 8×8 pixels, masked at ratios 0 to 0.9,
without labels. Then, unmasked: the effective rank of the 32 outputs, beside that of the best linear masked autoencoder
in closed form; and the accuracy of a linear classifier on them that is given five labelled images of each digit.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from eckart import linalg
from eckart.claims.claim import Check, Claim, Line, Panel, Result
from eckart.claims.data._digits import CLASSES, all_digits
from eckart.claims.data._spearman import spearman
from eckart.nn import Progress
from eckart.regularizers import masked_linear_optimum, representation_spectrum, train_masked

RATES = (0.0, 0.25, 0.5, 0.75, 0.9)
FEW, MANY = 5, 20  # labels of each digit, for the probe


class Size(NamedTuple):
    """Networks for each ratio, steps of each, and draws of the labelled images."""

    networks: int
    steps: int
    draws: int


SIZES = {"small": Size(1, 500, 20), "paper": Size(5, 2000, 50)}


def run(
    seed: int,
    size: str = "small",
    *,
    progress: Progress | None = None,
    masking: Callable[[float], float] = float,
) -> Result:
    """Train masked autoencoders at each ratio, and measure their representations.

    Args:
        seed: of the weights, the masks and the labelled images.
        size: "small" or "paper".
        progress: called with the networks that are trained.
        masking: ratio on the axis → ratio that the training hides; the identity.
    """
    sizes = SIZES[size]
    X, digits = _digits()
    ranks, few, many = torch.zeros(3, len(RATES), sizes.networks)
    for column in range(sizes.networks):
        for row, rate in enumerate(RATES):
            generator = torch.Generator().manual_seed(sizes.networks * seed + column)
            encoder = _train(X, masking(rate), sizes.steps, generator)
            ranks[row, column] = representation_spectrum(encoder, [X]).effective_rank
            few[row, column] = _probe(encoder(X).detach(), digits, FEW, sizes.draws, generator)
            many[row, column] = _probe(encoder(X).detach(), digits, MANY, sizes.draws, generator)
            if progress is not None:
                progress(column * len(RATES) + row + 1, sizes.networks * len(RATES), f"mask ratio {rate}")
    linear = [_linear_rank(X, rate) for rate in RATES]
    rank, with_few, with_many = (values.mean(1).tolist() for values in (ranks, few, many))
    panels = _panels(rank, linear, with_few, with_many, sizes)
    return Result(_checks(rank, linear, with_few), panels, _note(rank, linear, with_few, with_many))


def _digits() -> tuple[Tensor, Tensor]:
    """The images as rows, about their mean, and what they show."""
    images, digits = all_digits()
    X = images.float()
    return X - X.mean(0), digits


def _train(X: Tensor, rate: float, steps: int, generator: torch.Generator) -> nn.Module:
    encoder = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 32))
    decoder = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 64))
    for layer in (*encoder, *decoder):
        if isinstance(layer, nn.Linear):  # as torch's own start, from this generator
            nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=generator)
            nn.init.zeros_(layer.bias)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=2e-3)
    train_masked(
        encoder, decoder, X, rate=rate, steps=steps, law="bernoulli", loss="all", batch_size=256, optimizer=optimizer,
        generator=generator,
    )  # fmt: skip
    return encoder


def _probe(Z: Tensor, digits: Tensor, labels: int, draws: int, generator: torch.Generator) -> float:
    """Mean accuracy of ridge regression from the representation to the digit, on all images that have no label."""
    from sklearn.linear_model import RidgeClassifier

    Z = (Z - Z.mean(0)) / (Z.std(0) + 1e-6)
    accuracies = []
    for _ in range(draws):
        order = torch.randperm(len(digits), generator=generator)
        labelled = torch.cat([order[digits[order] == digit][:labels] for digit in range(CLASSES)])
        rest = torch.ones(len(digits), dtype=torch.bool).index_fill(0, labelled, False)
        probe = RidgeClassifier(alpha=5.0).fit(Z[labelled].numpy(), digits[labelled].numpy())
        accuracies.append(probe.score(Z[rest].numpy(), digits[rest].numpy()))
    return sum(accuracies) / len(accuracies)


def _linear_rank(X: Tensor, rate: float) -> float:
    """The effective rank of what the best linear masked autoencoder gives back, in closed form."""
    C = (X.mT @ X / len(X)).double()
    A = masked_linear_optimum(C, rate=rate)
    return float(linalg.effective_rank(linalg.psd_eigenvalues(A @ C @ A.mT).sqrt()))


def _checks(rank: list[float], linear: list[float], accuracy: list[float]) -> list[Check]:
    falls = spearman(RATES, rank)
    checks = [
        Check("rank correlation of mask ratio and effective rank", spearman(RATES, linear), falls, 0.2),
        Check("effective rank at mask 0.9 over that at 0", 0.6, rank[-1] / rank[0], relation="≤"),
    ]
    low, high = _beside(rank, linear)
    checks.append(
        Check("effective rank over the linear closed form's, the least of all ratios", 0.5, low, relation="≥")
    )
    checks.append(Check("effective rank over the linear closed form's, the most", 2.0, high, relation="≤"))
    gain = max(accuracy[1:]) - accuracy[0]
    checks.append(Check("probe's accuracy at the best mask ratio less that at 0", 0.02, gain, relation="≥"))
    return checks


def _beside(rank: list[float], linear: list[float]) -> tuple[float, float]:
    """The least and the most that the trained rank is of the linear one."""
    shares = [trained / closed for trained, closed in zip(rank, linear, strict=True)]
    return min(shares), max(shares)


def _note(rank: list[float], linear: list[float], few: list[float], many: list[float]) -> str:
    best = max(range(len(RATES)), key=few.__getitem__)
    low, high = _beside(rank, linear)
    return (
        f"Masking leaves fewer directions, {low:.2f} to {high:.2f} times as many as the best linear map has. "
        f"With {FEW} labels of each digit a linear probe is right for {few[0]:.1%} of the rest without masking and "
        f"for {few[best]:.1%} at mask ratio {RATES[best]}, the best of these. Labels make up for it: with {MANY} the "
        f"two are {many[0]:.1%} and {many[best]:.1%}."
    )


def _panels(rank: list[float], linear: list[float], few: list[float], many: list[float], sizes: Size) -> list[Panel]:
    return [
        Panel(
            "Effective rank of the representation", "mask ratio", "effective rank (of σ²; 32 outputs)",
            [
                Line("linear masked autoencoder, closed form", RATES, linear, "dashed"),
                Line(f"trained (networks: {sizes.networks})", RATES, rank),
            ],
        ),
        Panel(
            f"Linear probe, mean over {sizes.draws} draws of the labels", "mask ratio", "accuracy on the other images",
            [Line(f"{FEW} labels per digit", RATES, few), Line(f"{MANY} labels per digit", RATES, many)],
        ),
    ]  # fmt: skip


CLAIM = Claim(
    id="D5",
    title="Mask ratio and representation",
    statement="On digits, the effective rank of a masked autoencoder's representation falls with the mask ratio, as "
    "the linear closed form says, and a linear classifier with few labels does better on it than without masks.",
    source="the overview's masked self-supervised learning (arXiv 2503.19859), measured here; closed form as C7",
    half="data",
    regime="A small nonlinear network, pixels hidden independently, loss on all entries. The longer it trains, the "
    "more directions it keeps beyond the linear closed form, which tells the trend and not the number. The more labels "
    "there are, the less the mask ratio matters to the classifier.",
    run=run,
)
