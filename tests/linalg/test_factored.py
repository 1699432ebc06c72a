"""Products kept factored: the algebra equals that of the dense matrices, without forming them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eckart.linalg.factored import balance, product_sum, product_svd, product_truncate
from eckart.linalg.factored_norms import product_distance, product_inner, product_norm

SHAPES = [(12, 3, 20), (20, 3, 12), (5, 9, 7), (4, 4, 4), (1, 2, 6), (6, 1, 1)]


def pair(m: int, r: int, n: int, seed: int = 0, *batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    B = torch.randn(*batch, m, r, dtype=torch.float64, generator=generator)
    return B, torch.randn(*batch, r, n, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_svd_of_a_product_is_that_of_the_dense_matrix(shape: tuple[int, int, int]) -> None:
    B, A = pair(*shape)
    k = min(shape)
    U, S, Vh = product_svd(B, A)
    assert (U.shape[-1], S.shape[-1], Vh.shape[-2]) == (k, k, k)
    torch.testing.assert_close((U * S) @ Vh, B @ A)
    torch.testing.assert_close(S, torch.linalg.svdvals(B @ A)[:k])
    torch.testing.assert_close(U.mT @ U, torch.eye(k, dtype=torch.float64))
    torch.testing.assert_close(Vh @ Vh.mT, torch.eye(k, dtype=torch.float64))


def test_every_matrix_of_the_menagerie_has_the_svd_of_its_products(matrix: Tensor) -> None:
    for B, A in ((matrix, torch.eye(matrix.shape[1], dtype=torch.float64)), (matrix, matrix.T), (matrix.T, matrix)):
        U, S, Vh = product_svd(B, A)
        torch.testing.assert_close((U * S) @ Vh, B @ A)
        torch.testing.assert_close(product_norm(B, A), torch.linalg.matrix_norm(B @ A))


@pytest.mark.parametrize("shape", SHAPES)
def test_norm_inner_product_and_distance_are_those_of_the_dense_matrices(shape: tuple[int, int, int]) -> None:
    m, r, n = shape
    first, second = pair(m, r, n, 1), pair(m, r + 2, n, 2)
    X, Y = first[0] @ first[1], second[0] @ second[1]
    torch.testing.assert_close(product_norm(*first), X.norm())
    torch.testing.assert_close(product_inner(first, second), (X * Y).sum())
    torch.testing.assert_close(product_distance(first, second), (X - Y).norm())


@settings(deadline=None, max_examples=30)
@given(
    m=st.integers(1, 9), n=st.integers(1, 9), ranks=st.lists(st.integers(1, 5), min_size=1, max_size=4), data=st.data()
)
def test_a_sum_of_products_is_the_sum_of_the_dense_matrices(m, n, ranks, data) -> None:  # type: ignore[no-untyped-def]
    pairs = [pair(m, r, n, seed) for seed, r in enumerate(ranks)]
    weights = data.draw(st.lists(st.floats(-2, 2), min_size=len(pairs), max_size=len(pairs)))
    B, A = product_sum(pairs, weights)
    dense = sum(w * L @ R for w, (L, R) in zip(weights, pairs, strict=True))
    torch.testing.assert_close(B @ A, dense)
    assert B.shape[-1] == sum(ranks)
    D, E = product_truncate(B, A, rank=min(m, n))
    torch.testing.assert_close(D @ E, dense)


@settings(deadline=None, max_examples=30)
@given(m=st.integers(1, 9), n=st.integers(1, 9), r=st.integers(1, 6), rank=st.integers(1, 6), seed=st.integers(0, 99))
def test_truncation_meets_the_eckart_young_bound(m, n, r, rank, seed) -> None:  # type: ignore[no-untyped-def]
    B, A = pair(m, r, n, seed)
    D, E = product_truncate(B, A, rank=rank)
    assert D.shape[-1] == min(m, n, r, rank)
    tail = torch.linalg.svdvals(B @ A)[rank:].norm()
    torch.testing.assert_close((B @ A - D @ E).norm(), tail, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(D.mT @ D, E @ E.mT)


@pytest.mark.parametrize(
    ("energy", "rank"), [(0.0, 1), (0.5, 1), (0.9, 1), (0.91, 2), (0.99, 2), (0.9999, 3), (1.0, 3)]
)
def test_an_energy_keeps_the_least_rank_that_holds_it(energy: float, rank: int) -> None:
    B = torch.diag(torch.tensor([3.0, 0.95, 0.1, 0.0], dtype=torch.float64))  # shares 0.908, 0.091, 0.001
    D, _ = product_truncate(B, torch.eye(4, dtype=torch.float64), energy=energy)
    assert D.shape[-1] == rank
    assert product_truncate(B, torch.eye(4, dtype=torch.float64), energy=energy, rank=2)[0].shape[-1] == min(rank, 2)


def test_a_zero_product_truncates_to_one_column_of_zeros() -> None:
    D, E = product_truncate(torch.zeros(5, 3), torch.zeros(3, 4), energy=0.99)
    assert D.shape == (5, 1)
    assert not (D @ E).any()


def test_balancing_keeps_the_product_and_gives_the_smallest_factors(matrix: Tensor) -> None:
    A = torch.randn(matrix.shape[1], 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    B, A = 1e3 * matrix, 1e-3 * A
    D, E = balance(B, A)
    torch.testing.assert_close(D @ E, B @ A)
    nuclear = torch.linalg.svdvals(B @ A).sum()
    torch.testing.assert_close(D.square().sum() + E.square().sum(), 2 * nuclear)


def test_a_batch_equals_its_products_one_by_one() -> None:
    first, second = pair(6, 2, 9, 0, 3), pair(6, 4, 9, 1, 3)
    B, A = product_sum([first, second], [0.5, 2.0])
    D, E = product_truncate(B, A, rank=3)
    distance, inner = product_distance(first, second), product_inner(first, second)
    for i in range(3):
        one, two = (first[0][i], first[1][i]), (second[0][i], second[1][i])
        L, R = product_truncate(*product_sum([one, two], [0.5, 2.0]), rank=3)
        torch.testing.assert_close(D[i] @ E[i], L @ R)
        torch.testing.assert_close(distance[i], product_distance(one, two))
        torch.testing.assert_close(inner[i], product_inner(one, two))


@pytest.mark.parametrize("size", [1e-6, 1e-10, 1e-13])
def test_the_distance_of_nearly_equal_factors_keeps_its_digits(size: float) -> None:
    B, A = pair(40, 4, 30)
    dB, dA = pair(40, 4, 30, 1)
    D, E = B + size * dB, A + size * dA
    dB, dA = D - B, E - A  # as stored
    exact = dB @ A + D @ dA
    torch.testing.assert_close(product_distance((B, A), (D, E)), exact.norm(), rtol=1e-10, atol=0)
    naive = product_norm(B, A) ** 2 + product_norm(D, E) ** 2 - 2 * product_inner((B, A), (D, E))
    assert size > 1e-8 or abs(float(naive.clamp_min(0).sqrt() / exact.norm()) - 1) > 0.1


def test_one_product_in_two_gauges_has_distance_zero_to_rounding() -> None:
    B, A = pair(40, 4, 30)
    R = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    norm = product_norm(B, A)
    assert product_distance((B, A), (B @ R, torch.linalg.solve(R, A))) < 1e-13 * norm
    assert product_distance((B, A), (B * 1e9, A / 1e9)) < 1e-13 * norm
    assert product_distance((B, A), (B, A)) == 0


def test_float32_factors_that_differ_in_the_last_digits_are_told_apart() -> None:
    B, A = (F.float() for F in pair(40, 4, 30))
    D = B * (1 + 2**-22)
    exact = ((D.double() - B.double()) @ A.double()).norm()
    torch.testing.assert_close(product_distance((B, A), (D, A)), exact, rtol=1e-9, atol=0)


def test_products_far_too_large_to_form_go_through_the_whole_algebra() -> None:
    generator = torch.Generator().manual_seed(0)
    size = 200_000  # the dense matrix would be 160 GB
    B, A = torch.randn(size, 4, generator=generator), torch.randn(4, size, generator=generator)
    U, S, Vh = product_svd(B, A)
    assert (U.shape, S.shape, Vh.shape) == ((size, 4), (4,), (4, size))
    torch.testing.assert_close(S.double().norm(), product_norm(B, A), rtol=1e-5, atol=0)
    L, R = product_truncate(*product_sum([(B, A), (B, A)], [0.25, 0.75]), rank=4)
    D, E = balance(B, A)
    norm = product_norm(B, A)
    assert product_distance((L, R), (B, A)) < 1e-5 * norm
    assert product_distance((D, E), (B, A)) < 1e-5 * norm
    torch.testing.assert_close(product_inner((L, R), (B, A)), norm**2, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_factors_stay_half_and_lose_only_their_rounding(dtype: torch.dtype) -> None:
    B, A = (F.to(dtype) for F in pair(12, 3, 20))
    exact = B.double() @ A.double()
    U, S, Vh = product_svd(B, A)
    D, E = product_truncate(B, A, rank=3)
    assert {F.dtype for F in (U, S, Vh, D, E)} == {dtype}
    for product in ((U.double() * S.double()) @ Vh.double(), D.double() @ E.double()):
        assert (product - exact).norm() < 2 * torch.finfo(dtype).eps * exact.norm()
    torch.testing.assert_close(product_norm(B, A), exact.norm())


def test_factors_that_do_not_fit_are_named() -> None:
    B, A = torch.ones(3, 2), torch.ones(2, 4)
    with pytest.raises(ValueError, match="do not multiply"):
        product_svd(B, B)
    with pytest.raises(ValueError, match="one shape"):
        product_distance((B, A), (A.T, A))
    with pytest.raises(ValueError, match="pairs is empty"):
        product_sum([])
    with pytest.raises(ValueError, match="1 numbers for 2 pairs"):
        product_sum([(B, A), (B, A)], [1.0])
    with pytest.raises(ValueError, match="rank= or energy="):
        product_truncate(B, A)
    with pytest.raises(ValueError, match="NaN or infinite"):
        product_norm(B * float("nan"), A)
