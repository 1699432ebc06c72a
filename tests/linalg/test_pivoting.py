"""linalg.pivoting: a product rewritten on r of its rows, without loss and with moderate combinations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eckart.linalg.pivoting import pivot_factors, pivot_rows


def _product(index, rest, P, C):
    W = C.new_empty(*C.shape[:-2], index.shape[-1] + rest.shape[-1], C.shape[-1])
    at = torch.cat((index, rest), -1).unsqueeze(-1).expand_as(W)
    return W.scatter(-2, at, torch.cat((C, P @ C), -2))


def _relative(W, reference):
    return float((W.double() - reference).norm() / reference.norm().clamp_min(1e-300))


def test_the_product_is_kept_to_rounding_over_the_menagerie(matrix):
    m, n = matrix.shape
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    for B, A in ((U * S, Vh), (matrix, torch.eye(n, dtype=matrix.dtype)) if m >= n else (U, S[:, None] * Vh)):
        assert _relative(_product(*pivot_factors(B, A)), B @ A) <= 1e-12


def test_the_pivot_rows_are_rows_of_the_product_bit_for_bit_in_float64(generator):
    B = torch.randn(30, 7, dtype=torch.float64, generator=generator)
    A = torch.randn(7, 11, dtype=torch.float64, generator=generator)
    index, _, _, C = pivot_factors(B, A)
    torch.testing.assert_close(C, (B @ A)[index], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("m", "r"), [(64, 8), (256, 100), (576, 280), (1536, 100)])
def test_the_combinations_are_moderate(m, r, generator):
    B = torch.randn(m, r, generator=generator)
    P = pivot_factors(B, torch.eye(r))[2]
    assert P.abs().max() <= 4


def test_badly_scaled_columns_do_not_make_the_combinations_larger(generator):
    B = torch.randn(200, 40, generator=generator)
    scaled = B * torch.logspace(0, -6, 40)
    assert torch.equal(pivot_rows(B), pivot_rows(scaled))
    assert pivot_factors(scaled, torch.eye(40))[2].abs().max() <= 4


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_rank_deficient_factor_is_no_special_case(rank, generator):
    B = torch.randn(20, rank, dtype=torch.float64, generator=generator) @ torch.ones(rank, 6, dtype=torch.float64)
    A = torch.randn(6, 9, dtype=torch.float64, generator=generator)
    index, rest, P, C = pivot_factors(B, A)
    torch.testing.assert_close(_product(index, rest, P, C), B @ A, rtol=1e-12, atol=1e-12)
    assert P.abs().max() <= 4


def test_full_rank_keeps_every_row_and_no_combination(generator):
    B = torch.randn(5, 5, generator=generator)
    A = torch.randn(5, 8, generator=generator)
    index, rest, P, C = pivot_factors(B, A)
    assert index.tolist() == [0, 1, 2, 3, 4]
    assert (rest.shape, P.shape) == ((0,), (0, 5))
    torch.testing.assert_close(C, B @ A)


def test_rank_zero_is_the_zero_product():
    index, rest, P, C = pivot_factors(torch.empty(4, 0), torch.empty(0, 3))
    assert (index.tolist(), rest.tolist()) == ([], [0, 1, 2, 3])
    assert torch.equal(_product(index, rest, P, C), torch.zeros(4, 3))


def test_a_batch_is_its_members(generator):
    B = torch.randn(2, 3, 12, 4, generator=generator)
    A = torch.randn(2, 3, 4, 5, generator=generator)
    batched = pivot_factors(B, A)
    for i in range(2):
        for j in range(3):
            for got, alone in zip(batched, pivot_factors(B[i, j], A[i, j]), strict=True):
                torch.testing.assert_close(got[i, j], alone)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_each_dtype_comes_back_with_only_its_own_rounding(dtype, tolerance, generator):
    B = torch.randn(96, 32, generator=generator).to(dtype)
    A = torch.randn(32, 48, generator=generator).to(dtype)
    index, rest, P, C = pivot_factors(B, A)
    assert (P.dtype, C.dtype) == (dtype, dtype)
    assert _relative(_product(index, rest, P.double(), C.double()), B.double() @ A.double()) <= tolerance


@settings(max_examples=25, deadline=None)
@given(m=st.integers(1, 24), r=st.integers(0, 24), n=st.integers(1, 12), seed=st.integers(0, 1000))
def test_index_and_rest_part_the_rows_and_the_product_is_kept(m, r, n, seed):
    r = min(m, r)
    generator = torch.Generator().manual_seed(seed)
    B = torch.randint(-2, 3, (m, r), generator=generator).double()  # small integers: often rank-deficient
    A = torch.randn(r, n, dtype=torch.float64, generator=generator)
    index, rest, P, C = pivot_factors(B, A)
    assert sorted(index.tolist() + rest.tolist()) == list(range(m))
    torch.testing.assert_close(_product(index, rest, P, C), B @ A, rtol=1e-10, atol=1e-10)


def test_more_columns_than_rows_is_an_error():
    with pytest.raises(ValueError, match=r"r ≤ m, got shape \(3, 4\).*dense"):
        pivot_rows(torch.randn(3, 4))


def test_factors_that_do_not_chain_are_an_error():
    with pytest.raises(ValueError, match=r"A must be .* got shape \(3, 5\)"):
        pivot_factors(torch.randn(6, 2), torch.randn(3, 5))


def test_entries_that_are_not_finite_are_an_error():
    B, A = torch.randn(6, 2), torch.randn(2, 5)
    B[0, 0] = float("nan")
    with pytest.raises(ValueError, match="B of shape"):
        pivot_factors(B, A)
    with pytest.raises(ValueError, match="A of shape"):
        pivot_factors(torch.randn(6, 2), A / 0)


def test_integers_are_an_error():
    with pytest.raises(TypeError, match=r"B must be real floating point.*B\.float\(\)"):
        pivot_rows(torch.ones(3, 2, dtype=torch.int64))


def test_where_elimination_grows_other_rows_are_taken() -> None:
    """Wilkinson's matrix, on which partial pivoting grows like 2^r."""
    B = torch.eye(128, 64) - torch.ones(128, 64).tril(-1)
    A = torch.randn(64, 20, generator=torch.Generator().manual_seed(0))
    index, rest, P, C = pivot_factors(B, A)
    assert float(P.abs().max()) < 10
    torch.testing.assert_close(P @ C, (B @ A)[rest], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(C, (B @ A)[index], rtol=1e-4, atol=1e-3)
