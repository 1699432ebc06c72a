"""Small symmetric positive systems: right in float64 and float32, with singular and zero matrices, on the device."""

import pytest
import torch
from torch import Tensor

from eckart.linalg import solve_gram, solve_sylvester


def gram(r: int, k: int, generator: torch.Generator, spread: float = 1.0) -> Tensor:
    B = torch.randn(k, r, dtype=torch.float64, generator=generator) * spread ** torch.arange(r, dtype=torch.float64)
    return B.mT @ B


def test_a_damped_gram_system_is_solved_to_rounding(generator: torch.Generator) -> None:
    M, Y = gram(7, 20, generator), torch.randn(3, 7, 5, dtype=torch.float64, generator=generator)
    X = solve_gram(M.expand(3, 7, 7), Y, damping=0.3)
    torch.testing.assert_close((M + 0.3 * torch.eye(7, dtype=torch.float64)) @ X, Y, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dependent_columns_and_a_zero_matrix_have_an_answer(dtype: torch.dtype, generator: torch.Generator) -> None:
    singular = gram(6, 3, generator).to(dtype)
    X = solve_gram(torch.stack((singular, torch.zeros_like(singular))), torch.stack((singular, singular)))
    torch.testing.assert_close(singular @ X[0], singular, atol=1e-3 * singular.norm().item(), rtol=0)
    assert torch.equal(X[1], torch.zeros_like(singular))


@pytest.mark.parametrize("rows", [64, 1024, 16384])
@pytest.mark.parametrize("r", [4, 8, 64])
def test_a_gram_matrix_of_dependent_columns_in_float32_is_solved_whatever_its_rounding(
    rows: int, r: int, generator: torch.Generator
) -> None:
    for rank in (1, 2):
        B = torch.randn(rows, rank, generator=generator) @ torch.randn(rank, r, generator=generator)
        M = B.mT @ B
        assert (M @ solve_gram(M, M) - M).norm() < 1e-3 * M.norm()
        X = solve_sylvester(M, M, M @ M)
        assert (M @ X + X @ M - M @ M).norm() < 5e-3 * (M @ M).norm()


def test_half_precision_comes_back_in_half_precision_and_is_computed_in_float32(generator: torch.Generator) -> None:
    M = gram(4, 9, generator).bfloat16()
    X = solve_gram(M, torch.eye(4, dtype=torch.bfloat16), damping=0.1)
    assert X.dtype == torch.bfloat16
    torch.testing.assert_close(X.float(), torch.linalg.inv(M.float() + 0.1 * torch.eye(4)), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("spread", [1.0, 0.5, 0.1])
def test_sylvester_agrees_with_the_kronecker_system(spread: float, generator: torch.Generator) -> None:
    P, Q = gram(5, 12, generator, spread), 1e-3 * gram(4, 9, generator, spread)
    C = torch.randn(5, 4, dtype=torch.float64, generator=generator)
    whole = torch.kron(P, torch.eye(4, dtype=torch.float64)) + torch.kron(torch.eye(5, dtype=torch.float64), Q)
    expected = torch.linalg.solve(whole, C.flatten()).view(5, 4)
    torch.testing.assert_close(solve_sylvester(P, Q, C), expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-5)


def test_sylvester_in_float32_has_a_small_residual_where_one_side_is_far_larger(generator: torch.Generator) -> None:
    P, Q = (1e-6 * gram(8, 30, generator)).float(), gram(8, 30, generator).float()
    C = torch.randn(8, 8, generator=generator)
    X = solve_sylvester(P, Q, C)
    assert (P @ X + X @ Q - C).norm() < 1e-4 * C.norm()


def test_sylvester_with_a_zero_side_is_a_division_by_the_other_and_with_both_zero(generator: torch.Generator) -> None:
    Q, zero = gram(4, 9, generator), torch.zeros(4, 4, dtype=torch.float64)
    C = torch.randn(4, 4, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(solve_sylvester(zero, Q, C) @ Q, C, atol=1e-6, rtol=1e-6)
    assert torch.equal(solve_sylvester(zero, zero, C), zero)


def test_bad_shapes_and_damping_are_named() -> None:
    with pytest.raises(ValueError, match="square"):
        solve_gram(torch.ones(2, 3), torch.ones(3, 1))
    with pytest.raises(ValueError, match="Y needs 2 rows"):
        solve_gram(torch.eye(2), torch.ones(3, 1))
    with pytest.raises(ValueError, match="damping"):
        solve_gram(torch.eye(2), torch.ones(2, 1), damping=-1.0)
    with pytest.raises(ValueError, match="must be"):
        solve_sylvester(torch.eye(2), torch.eye(3), torch.ones(3, 2))
