"""The contract of every row of METHODS: mask, penalty and optimum are about the same thing."""

import pytest
import torch
from torch import nn

from eckart.regularizers import METHODS, Method, fit_factors, monte_carlo_penalty

OPTIONS = {"block": 2}
RATE = {"weight decay": 0.8}
WIDTH = 8


def _case(name: str, method: Method) -> tuple[torch.Tensor, torch.Tensor | None, float, dict[str, int]]:
    """Y, X, rate and options: data for the rows that take them."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(5, 12, generator=generator, dtype=torch.float64) * torch.arange(1, 6).double()[:, None] ** -0.5
    Y = torch.randn(4, 12, generator=generator, dtype=torch.float64)
    options = {key: OPTIONS[key] for key in method.options}
    if name == "weight decay":
        return Y, None, 0.8, options
    return (X if name == "masked autoencoder" else Y), X, 0.4, options


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.masked])
def test_monte_carlo_of_the_mask_is_the_penalty(name: str) -> None:
    method = METHODS[name]
    Y, X, rate, options = _case(name, method)
    first, second = (
        nn.Linear(len(X), WIDTH, bias=False).double(),
        nn.Linear(WIDTH, len(Y), bias=False).double(),
    )
    model = method.masked(first, second, rate, **options)
    mean, error = monte_carlo_penalty(model, lambda model, X: (Y - model(X.mT).mT).square().sum(), X, samples=5000)
    expected = method.penalty(second.weight, first.weight.mT, rate, inputs=X, **options)
    assert abs(mean - expected) < 4 * error
    assert error < 0.05 * expected


@pytest.mark.parametrize("name", METHODS)
def test_the_optimum_is_attained_and_beaten_by_nothing(name: str) -> None:
    method = METHODS[name]
    Y, X, rate, options = _case(name, method)
    best = method.optimum(Y, WIDTH, rate, inputs=X, **options)

    def penalty(U: torch.Tensor, V: torch.Tensor) -> torch.Tensor:
        return method.penalty(U, V, rate, inputs=X, **options)

    def objective(U: torch.Tensor, V: torch.Tensor) -> float:
        fit = U @ (V.mT if X is None else V.mT @ X)
        return ((Y - fit).square().sum() + penalty(U, V)).item()

    assert best.U.shape == (len(Y), WIDTH)
    assert objective(best.U, best.V) == pytest.approx(best.objective, rel=1e-8)
    generator = torch.Generator().manual_seed(1)
    for size in (1e-4, 1e-2, 1.0):
        moves = [size * torch.randn(*F.shape, generator=generator, dtype=F.dtype) for F in (best.U, best.V)]
        assert objective(best.U + moves[0], best.V + moves[1]) >= best.objective * (1 - 1e-10)
    reached = [fit_factors(Y, WIDTH, penalty, inputs=X, generator=generator)[2] for _ in range(3)]
    assert min(reached) == pytest.approx(best.objective, rel=1e-7)
    assert max(reached) == pytest.approx(best.objective, rel=1e-4)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("width", [2, 8, 12])
def test_factors_have_the_width_that_was_asked_for(name: str, width: int) -> None:
    method = METHODS[name]
    Y, X, rate, options = _case(name, method)
    width = max(width, 8) if options else width  # fewer blocks might not share the spectrum
    best = method.optimum(Y.float(), width, rate, inputs=None if X is None else X.float(), **options)
    assert best.U.shape[1] == best.V.shape[1] == width
    assert best.U.dtype == best.V.dtype == torch.float32


def test_rows_say_when_they_do_not_apply() -> None:
    Y = torch.randn(3, 6)
    with pytest.raises(ValueError, match="matrix factorisation only"):
        METHODS["weight decay"].optimum(Y, 3, 0.1, inputs=torch.randn(2, 6))
    with pytest.raises(ValueError, match="target is its inputs"):
        METHODS["masked autoencoder"].optimum(Y, 3, 0.1, inputs=torch.randn(3, 6))
