"""Each loss and its slope, against autograd on the formula."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from eckart.theory import completion, factorization, regression, sensing
from eckart.theory.descent import Slope


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TARGET, MASK = _draw(3, 4), _draw(3, 4, seed=1) > 0
OPERATORS, VALUES = _draw(7, 3, 4, seed=2), _draw(7, seed=3)
X, Y = _draw(4, 9, seed=4), _draw(3, 9, seed=5)

CASES: dict[str, tuple[Slope, Callable[[Tensor], Tensor]]] = {
    "factorization": (factorization(TARGET), lambda P: (P - TARGET).square().sum() / 2),
    "completion": (completion(TARGET, MASK), lambda P: (P - TARGET)[MASK].square().sum() / 2),
    "sensing": (
        sensing(OPERATORS, VALUES),
        lambda P: ((OPERATORS * P).sum(dim=(1, 2)) - VALUES).square().mean() / 2,
    ),
    "regression": (regression(X, Y), lambda P: (P @ X - Y).square().sum() / 2),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_slope_are_those_of_autograd(name: str) -> None:
    slope, formula = CASES[name]
    P = _draw(3, 4, seed=6).requires_grad_()
    expected = formula(P)
    expected.backward()
    loss, G = slope(P.detach())
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(G, P.grad)


@pytest.mark.parametrize("name", CASES)
def test_a_slope_leaves_the_product_as_it_is(name: str) -> None:
    P = _draw(3, 4, seed=6)
    CASES[name][0](P)
    assert torch.equal(P, _draw(3, 4, seed=6))


def test_entries_that_are_not_observed_do_not_matter() -> None:
    hidden = torch.where(MASK, TARGET, 1e6)
    P = _draw(3, 4, seed=6)
    for one, other in zip(completion(TARGET, MASK)(P), completion(hidden, MASK)(P), strict=True):
        assert torch.equal(one, other)


def test_sensing_by_independent_operators_is_factorization_on_average() -> None:
    A = _draw(20000, 3, 4)
    _, G = sensing(A, (A * TARGET).sum(dim=(1, 2)))(torch.zeros(3, 4, dtype=torch.float64))
    torch.testing.assert_close(G, -TARGET, atol=0.1, rtol=0)


def test_the_loss_of_a_fitted_network_is_never_negative() -> None:
    for seed in range(20):
        inputs, P = _draw(4, 50, seed=seed), _draw(3, 4, seed=seed + 100)
        loss, _ = regression(inputs, P @ inputs)(P)
        assert 0 <= loss < 1e-12


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: completion(TARGET, MASK.mT), "one shape"),
        (lambda: completion(TARGET, torch.zeros(3, 4)), "no entry"),
        (lambda: sensing(OPERATORS, VALUES[:-1]), "operators must be"),
        (lambda: sensing(OPERATORS[:0], VALUES[:0]), "k ≥ 1"),
        (lambda: regression(X, Y[:, :-1]), "differ in their samples"),
    ],
)
def test_what_does_not_fit_is_named(make: Callable[[], Slope], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
