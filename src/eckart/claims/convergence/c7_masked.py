"""C7: masking a linear autoencoder is a penalty, with a best map of low stable rank in closed form.

Data X (20, 200): four directions and noise. For mask ratios 0 to 0.9, the closed form A* = C(C + c·diag C)⁻¹ stands
beside maps that were trained: on real masks by `train_masked`, and through a bottleneck, or without masks, by L-BFGS on
the expected loss.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from eckart import linalg
from eckart.claims.claim import Check, Claim, Line, Panel, Result
from eckart.nn import Progress
from eckart.regularizers import (
    bernoulli_mask,
    fit_factors,
    masked_linear_factors,
    masked_linear_loss,
    masked_linear_optimum,
    masked_linear_penalty,
    train_masked,
)

SIGNAL, NOISE = 4, 0.1  # directions of X, and the noise's standard deviation beside signals of variance about 4
RATES = (0.25, 0.5, 0.75, 0.9)
WIDTHS = (1, 2, 3, 4)  # of the bottleneck


class Size(NamedTuple):
    """Features, samples, masks of the Monte Carlo mean, steps of training on masks and samples drawn at each."""

    n: int
    samples: int
    masks: int
    steps: int
    batch: int


SIZES = {"small": Size(20, 200, 300, 240, 3000), "paper": Size(20, 200, 5000, 1000, 8000)}


def run(
    seed: int,
    size: str = "small",
    *,
    progress: Progress | None = None,
    optimum: Callable[..., Tensor] = masked_linear_optimum,
    penalty: Callable[..., Tensor] = masked_linear_penalty,
) -> Result:
    """Compare the expected loss with Monte Carlo, and its optimum with trained maps.

    Args:
        seed: of the data, the masks and the starts.
        size: "small" or "paper".
        progress: called with the parts that are done.
        optimum: (C, rate=) → the best map, the claim's closed form.
        penalty: (A, C, rate=) → what masking adds to the loss, the claim's formula.
    """
    sizes, generator = SIZES[size], torch.Generator().manual_seed(seed)
    report = _Parts(progress, 3 + len(RATES) + len(WIDTHS))
    X = _data(sizes, generator)
    C = X @ X.mT / sizes.samples
    checks = _monte_carlo(X, C, sizes, penalty, generator)
    report("Monte Carlo of the masked loss")

    best = {rate: optimum(C, rate=rate) for rate in (0.0, *RATES)}
    trained = {0.0: _unmasked(C)}
    report("training without masks")
    for rate in RATES:
        trained[rate] = _train_on_masks(X, C, rate, sizes, generator)
        report(f"training at mask ratio {rate}")
    for rate, A in trained.items():
        checks += _compare(rate, A, best[rate])

    for width in WIDTHS:
        decoder, encoder = masked_linear_factors(C, width, rate=0.5)
        fitted = _fit(X, C, width, 0.5, penalty, generator)
        predicted, measured = (float(masked_linear_loss(A, C, rate=0.5)) for A in (decoder @ encoder, fitted))
        checks.append(Check(f"loss through {width} units, mask 0.5", predicted, measured, 1e-6, relative=True))
        report(f"a bottleneck of {width}")
    checks += _hidden_only(X, C, best[0.5], sizes, generator)
    report("loss on hidden entries alone")
    return Result(checks, _panels(best, trained), _NOTE)


_NOTE = (
    "Unmasked, the best map is the identity, of stable rank 20. Any mask makes it nearly the projection onto the four "
    "directions of the signal, and the more is hidden, the fewer count: what can't be guessed from other entries is "
    "not copied. With the loss on hidden entries alone, as in masked autoencoders, the map's diagonal has no say, and "
    "the optimum is another one."
)


class _Parts:
    """Reports one more part done at each call."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def __call__(self, label: str) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total, label)


def _data(sizes: Size, generator: torch.Generator) -> Tensor:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return draw(sizes.n, SIGNAL) @ draw(SIGNAL, sizes.samples) + NOISE * draw(sizes.n, sizes.samples)


def _monte_carlo(
    X: Tensor, C: Tensor, sizes: Size, penalty: Callable[..., Tensor], generator: torch.Generator
) -> list[Check]:
    """The mean of ‖X − θ⁻¹A(M∘X)‖²/N over masks, within five of its standard errors of the formula."""
    A = torch.randn(C.shape, generator=generator, dtype=C.dtype) / sizes.n**0.5
    checks = []
    for rate in (0.5, 0.9):
        values = torch.empty(sizes.masks, dtype=C.dtype)
        for index in range(sizes.masks):
            hidden = bernoulli_mask(torch.ones_like(X, dtype=torch.bool), rate, generator=generator)
            values[index] = (X - A @ X.masked_fill(hidden, 0) / (1 - rate)).square().sum() / sizes.samples
        predicted = float((X - A @ X).square().sum() / sizes.samples + penalty(A, C, rate=rate))
        error = float(values.std()) / sizes.masks**0.5
        checks.append(Check(f"masked loss of a random map, mask {rate}", predicted, float(values.mean()), 5 * error))
    return checks


def _compare(rate: float, A: Tensor, best: Tensor) -> list[Check]:
    checks = [
        Check(f"‖A − A*‖/‖A*‖ after training, mask {rate}", 0.0, float((A - best).norm() / best.norm()), 0.04),
        Check(f"stable rank, mask {rate}", _stable_rank(best), _stable_rank(A), 0.03, relative=True),
    ]
    if rate > 0:
        checks.append(Check(f"stable rank against the signal's, mask {rate}", SIGNAL, _stable_rank(A), 0.0, "≤"))
    return checks


def _train_on_masks(
    X: Tensor, C: Tensor, rate: float, sizes: Size, generator: torch.Generator, loss: Literal["all", "masked"] = "all"
) -> Tensor:
    """A linear map after SGD on freshly masked data, the mean of its last two thirds: each iterate carries noise."""
    encoder = nn.Linear(sizes.n, sizes.n, bias=False, dtype=C.dtype)
    nn.init.zeros_(encoder.weight)
    steepest = float(linalg.psd_eigenvalues(C + rate / (1 - rate) * C.diagonal().diag())[0])
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.5 * sizes.n / steepest, momentum=0.9)
    state, kept = None, []
    for stop in range(sizes.steps // 3, sizes.steps + 1, 5):
        state = train_masked(
            encoder, nn.Identity(), X.mT, rate=rate, steps=sizes.steps, stop=stop, state=state, law="bernoulli",
            loss=loss, batch_size=sizes.batch, optimizer=optimizer, generator=generator,
        ).state  # fmt: skip
        kept.append(encoder.weight.detach().clone())
    return torch.stack(kept).mean(0)


def _fit(
    X: Tensor, C: Tensor, width: int, rate: float, penalty: Callable[..., Tensor], generator: torch.Generator
) -> Tensor:
    """The map that a decoder and an encoder with `width` units between them come to on the expected loss, by L-BFGS."""
    each = X / X.shape[1] ** 0.5  # losses are means over samples
    decoder, encoder, _ = fit_factors(
        each, width, lambda U, V: penalty(U @ V.mT, C, rate=rate), inputs=each, generator=generator
    )
    return decoder @ encoder.mT


def _unmasked(C: Tensor) -> Tensor:
    """One matrix trained without masks from zero: the loss is convex, and steep only along the signal."""
    A = torch.zeros_like(C, requires_grad=True)
    optimizer = torch.optim.LBFGS([A], max_iter=250, history_size=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = masked_linear_loss(A, C, rate=0.0)
        value.backward()
        return value

    optimizer.step(closure)
    return A.detach()


def _hidden_only(X: Tensor, C: Tensor, best: Tensor, sizes: Size, generator: torch.Generator) -> list[Check]:
    """Where the closed form stops: the usual loss of masked autoencoders, on what is hidden."""
    A = _train_on_masks(X, C, 0.5, sizes, generator, loss="masked")
    away = float((A - best).norm() / best.norm())
    return [
        Check("loss on hidden entries: diagonal of A, which starts at 0", 0.0, float(A.diagonal().abs().max())),
        Check("loss on hidden entries: ‖A − A*‖/‖A*‖ is large", 0.1, away, relation="≥"),
    ]


def _stable_rank(A: Tensor) -> float:
    return float(linalg.stable_rank(linalg.singular_values(A)))


def _panels(best: dict[float, Tensor], trained: dict[float, Tensor]) -> list[Panel]:
    rates = list(best)
    indices = list(range(1, len(best[0.0]) + 1))
    spectra = []
    for rate in (0.0, 0.5, 0.9):
        spectra.append(Line(f"A*, mask {rate}", indices, linalg.singular_values(best[rate]).tolist(), "dashed"))
        spectra.append(Line(f"trained, mask {rate}", indices, linalg.singular_values(trained[rate]).tolist(), "points"))
    return [
        Panel(
            "The more is hidden, the lower the rank", "mask ratio", "stable rank of the map",
            [
                Line("closed form", rates, [_stable_rank(best[rate]) for rate in rates], "dashed"),
                Line("trained", rates, [_stable_rank(trained[rate]) for rate in rates], "points"),
            ],
        ),
        Panel("Singular values of the map", "index", "singular value", spectra),
    ]  # fmt: skip


CLAIM = Claim(
    id="C7",
    title="Linear masked autoencoder",
    statement="Masking the input of a linear autoencoder adds c‖A diag(XXᵀ)^½‖² to its loss, c = p/(1 − p), and the "
    "best map C(C + c·diag C)⁻¹ has a stable rank near the signal's.",
    source="own derivation; the penalty is that of dropout on the inputs (arXiv 1710.05092)",
    half="convergence",
    regime="Linear maps, independent masks, input divided by 1 − p, loss on all entries. With the loss on hidden "
    "entries alone the optimum is another one.",
    run=run,
)
