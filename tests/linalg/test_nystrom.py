"""Columns kept by a Nyström approximation: the best weight for them, the error that is told, twins, dead columns."""

import pytest
import torch
from torch import Tensor

from eckart.linalg import approximation_error, nystrom, nystrom_weight


def _problem(m: int, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    W, X, g = (
        torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((m, n), (n, 3 * n), (m, 2 * m))
    )
    return W, X @ X.T / (3 * n), g @ g.T


@pytest.mark.parametrize("with_outputs", [False, True])
@pytest.mark.parametrize("size", [1, 40, 70, 90])
def test_the_weight_is_the_least_squares_one_and_the_error_is_its(size, with_outputs, generator):
    W, C, G = _problem(6, 90, generator)
    G = G if with_outputs else None
    order, F, L, errors = nystrom(W, input_covariance=C, output_covariance=G)
    J, V = order[:size], nystrom_weight(F, L, size)
    expected = torch.linalg.solve(C[J][:, J], C[J] @ W.T).T
    torch.testing.assert_close(V, expected, rtol=1e-8, atol=1e-8)
    selected = torch.zeros(size, 90, dtype=torch.float64)
    selected[torch.arange(size), J] = 1
    error = approximation_error(W, V, selected, input_covariance=C, output_covariance=G)
    torch.testing.assert_close(errors[size], error.square(), rtol=1e-7, atol=1e-7 * float(errors[0]))
    assert sorted(order.tolist()) == list(range(90))


def test_the_first_column_is_the_best_single_one(generator):
    W, C, _ = _problem(5, 30, generator)
    order, _, _, errors = nystrom(W, input_covariance=C)
    removed = (W @ C).square().sum(0) / C.diagonal()
    assert int(order[0]) == int(removed.argmax())
    torch.testing.assert_close(errors[0] - errors[1], removed.max(), rtol=1e-8, atol=0)


@pytest.mark.parametrize("n", [24, 100])
def test_of_twins_one_is_enough(n, generator):
    _, C, _ = _problem(7, n, generator)
    twice = torch.cat((torch.arange(n), torch.arange(n)))
    doubled = torch.randn(7, 2 * n, dtype=torch.float64, generator=generator)
    order, F, L, errors = nystrom(doubled, input_covariance=C[twice][:, twice])
    assert sorted((order[:n] % n).tolist()) == list(range(n))
    assert float(errors[n]) < 1e-9 * float(errors[0])
    V = torch.zeros(7, n, dtype=torch.float64)
    V[:, order[:n] % n] = nystrom_weight(F, L, n)
    torch.testing.assert_close(V, doubled[:, :n] + doubled[:, n:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tokens", [1, 10])
def test_a_singular_covariance_has_a_finite_answer_that_fits_what_was_seen(tokens, dtype, generator):
    W = torch.randn(8, 50, dtype=dtype, generator=generator)
    X = torch.randn(50, tokens, dtype=dtype, generator=generator)
    X[3] = 0
    X[4] *= 100
    order, F, L, errors = nystrom(W, input_covariance=X @ X.T)
    V = nystrom_weight(F, L, 30)
    assert bool(torch.isfinite(V).all())
    error = float((W @ X - V @ X[order[:30]]).norm() / (W @ X).norm())
    assert error < (1e-2 if dtype == torch.float32 else 1e-5)
    assert bool((errors.diff() <= 0).all())


def test_without_data_the_largest_columns_stay_as_they_are():
    W = torch.tensor([[1.0, -5.0, 0.0, 3.0]])
    order, F, L, errors = nystrom(W, input_covariance=torch.zeros(4, 4))
    assert order.tolist() == [1, 3, 0, 2]
    torch.testing.assert_close(nystrom_weight(F, L, 2), torch.tensor([[-5.0, 3.0]]))
    torch.testing.assert_close(
        errors, torch.tensor([35.0, 10.0, 1.0, 0.0, 0.0], dtype=torch.float64), rtol=1e-4, atol=1e-4
    )


def test_a_size_out_of_range_is_named():
    _, F, L, _ = nystrom(torch.ones(2, 3))
    with pytest.raises(ValueError, match="size: 4; give a number from 0 to 3"):
        nystrom_weight(F, L, 4)
