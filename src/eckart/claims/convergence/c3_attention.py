"""C3: weight decay on attention is a nuclear norm on W_KᵀW_Q and W_OW_V, reached exponentially fast in λt."""

from functools import partial
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from eckart.claims.claim import Check, Claim, Line, Panel, Result
from eckart.claims.convergence.small_attention import train
from eckart.linalg import nuclear_norm, product_nuclear_norm, singular_values
from eckart.nn import Progress
from eckart.regularizers import AttentionProduct, decay_penalty, imbalance, rotary_norm
from eckart.theory import descend, factorization, product
from eckart.theory.descent import Slope


class Sizes(NamedTuple):
    """The paper's 5 × 5 problem, and a small attention that learns from another one."""

    values: tuple[float, ...] = (1.0, 0.8, 0.6, 0.4, 0.2)
    decays: tuple[float, ...] = (0.1, 0.25, 0.5)
    rate: float = 0.02
    steps: int = 6000
    every: int = 50  # steps between two looks
    attention_decay: float = 0.05
    attention_rate: float = 0.2
    attention_steps: int = 800


ROUNDING = 1e-9  # of ‖AᵀA − BᵀB‖
SIZES = {"small": Sizes(), "paper": Sizes(steps=20000, attention_steps=3000)}


def run(
    seed: int,
    size: str,
    *,
    progress: Progress | None = None,
    threshold: float = 0.5,
    exponent: float = 2.0,
) -> Result:
    """Train the paper's two factors and a small attention, with weight decay.

    Args:
        seed: of the starts, and of the attention's data and teacher.
        size: "small", or "paper" for longer training.
        progress: called after every training.
        threshold: what decay takes off a singular value, as a share of λ.
        exponent: the balance's rate of decay, in units of λ.
    """
    sizes = SIZES[size]
    total = len(sizes.decays) + 1
    generator = torch.Generator().manual_seed(seed)
    checks, spectra, balances = [], [], []
    for done, decay in enumerate(sizes.decays, start=1):
        course = _factors(decay, sizes, generator)
        predicted = [max(value - threshold * decay, 0.0) for value in sizes.values]
        checks += _factor_checks(decay, course, predicted, -exponent * decay)
        spectra += [
            Line(f"λ = {decay}", sizes.values, course.values, "points"),
            Line(f"(d − {decay}/2)_+", sizes.values, predicted, "dashed"),
        ]
        balances += _balance_lines(decay, course, exponent)
        if progress:
            progress(done, total, f"two factors, λ = {decay}")
    checks += _attention_checks(seed, sizes)
    if progress:
        progress(total, total, "attention")
    panels = [
        Panel("What weight decay leaves of each value", "d_i", "σ_i(ABᵀ)", spectra),
        Panel("The factors come into balance", "time t = rate · steps", "‖AᵀA − BᵀB‖_F", balances, log="y"),
    ]
    return Result(checks, panels, NOTE)


class _Course(NamedTuple):
    """A training of two factors."""

    times: Tensor
    balance: Tensor  # ‖AᵀA − BᵀB‖ at the times
    values: list[float]  # singular values of ABᵀ at the end
    gap: float  # ½(‖A‖² + ‖B‖²) − ‖ABᵀ‖_* at the end


def _factors(decay: float, sizes: Sizes, generator: torch.Generator) -> _Course:
    d = len(sizes.values)
    start = [0.5 * torch.randn(d, d, dtype=torch.float64, generator=generator) for _ in range(2)]
    target = torch.diag(torch.tensor(sizes.values, dtype=torch.float64))
    path = descend(start, _doubled(factorization(target)), rate=sizes.rate, decay=decay)
    balance = []
    for weights, _ in islice(path, 0, sizes.steps + 1, sizes.every):
        balance.append(imbalance(weights)[0])
    P = product(weights)
    times = sizes.rate * sizes.every * torch.arange(len(balance), dtype=torch.float64)
    gap = float(decay_penalty(weights) - nuclear_norm(P))
    return _Course(times, torch.stack(balance), singular_values(P).tolist(), gap)


def _factor_checks(decay: float, course: _Course, predicted: list[float], rate: float) -> list[Check]:
    pairs = enumerate(zip(predicted, course.values, strict=True), start=1)
    measured = _slope(course.times, course.balance)
    return [
        *(Check(f"σ_{i} at λ = {decay}", wanted, found, 5e-5) for i, (wanted, found) in pairs),
        Check(f"½(‖A‖² + ‖B‖²) − ‖ABᵀ‖_* at λ = {decay}", 0.0, course.gap, 1e-6),
        Check(f"rate of ‖AᵀA − BᵀB‖ at λ = {decay}", rate, measured, 0.03, relative=True),
    ]


def _balance_lines(decay: float, course: _Course, exponent: float) -> list[Line]:
    """The imbalance above rounding, at some thirty times."""
    seen = course.balance > ROUNDING
    every = -(-int(seen.sum()) // 30)
    times, balance = course.times[seen][::every], course.balance[seen][::every]
    theory = balance[0] * torch.exp(-exponent * decay * times)
    return [
        Line(f"λ = {decay}", times.tolist(), balance.tolist(), "points"),
        Line(f"e^(−2·{decay} t)", times.tolist(), theory.tolist(), "dashed"),
    ]


def _doubled(slope: Slope) -> Slope:
    """The paper's ‖ABᵀ − D‖², without the ½."""

    def doubled(P: Tensor) -> tuple[Tensor, Tensor]:
        loss, G = slope(P)
        return 2 * loss, 2 * G

    return doubled


def _slope(times: Tensor, balance: Tensor) -> float:
    """Of log ‖AᵀA − BᵀB‖ in time, by least squares, above rounding."""
    seen = balance > ROUNDING
    t, y = times[seen] - times[seen].mean(), balance[seen].log()
    return float((t * y).sum() / t.square().sum())


def _attention_checks(seed: int, sizes: Sizes) -> list[Check]:
    """What share of ½(‖A‖² + ‖B‖²) the nuclear norm of the products is, and where it is less."""
    learn = partial(train, seed, rate=sizes.attention_rate, steps=sizes.attention_steps)
    plain = learn(decay=sizes.attention_decay)
    turned = [p for p in learn(decay=sizes.attention_decay, rotary=True) if p.kind == "qk"]
    free = learn(decay=0.0)
    rotary = float(sum(rotary_norm(product).detach() for product in turned)) / _cost(turned)
    name = "share of ½(‖A‖² + ‖B‖²) in attention"
    return [
        Check(f"nuclear {name}", 1.0, _nuclear(plain) / _cost(plain), 1e-3),
        Check("nuclear norm of all its products", 0.5, _nuclear(plain), relation="≥"),
        Check(f"nuclear {name} without decay", 0.9, _nuclear(free) / _cost(free), relation="≤"),
        Check(f"nuclear {name}, q and k rotated", 0.998, _nuclear(turned) / _cost(turned), relation="≤"),
        Check(f"Σ_pairs ‖K‖‖Q‖ as a {name}, q and k rotated", 1.0, rotary, 1e-3),
    ]


def _nuclear(products: list[AttentionProduct]) -> float:
    return float(sum(product_nuclear_norm(p.left.detach(), p.right.detach()) for p in products))


def _cost(products: list[AttentionProduct]) -> float:
    return float(sum(decay_penalty([p.left.detach(), p.right.detach()]) for p in products))


NOTE = (
    "With this loss decay takes λ/2 off every singular value, and the two factors come into balance at rate 2λ "
    "whatever they fit. In a trained attention the norm of the factors ends as the nuclear norm of their products, "
    "and above it without decay. With a rotary embedding, which holds pairs of dimensions together, it ends as the sum "
    "of the pairs' norms instead."
)

CLAIM = Claim(
    id="C3",
    title="Weight decay on attention is a nuclear norm",
    statement="Weight decay on attention's factors is a nuclear norm on W_KᵀW_Q and W_OW_V, up to a part that falls "
    "as e^(−2λt).",
    source="arXiv 2410.23819",
    half="convergence",
    regime="small learning rate, nothing between the factors: with a rotary embedding the penalty is a larger norm; "
    "where λ/2 equals a singular value of the target, that one vanishes only as a power of t",
    run=run,
)
