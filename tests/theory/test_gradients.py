"""The rank of the gradient in the model G = A − B W C (T8), against running it."""

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eckart.linalg import singular_values, stable_rank
from eckart.theory import gradient_at, gradient_course, orthogonal_weights, slowest_part, stable_rank_bound


def _psd(size: int, rank: int, generator: torch.Generator) -> Tensor:
    M = torch.randn(size, rank, generator=generator, dtype=torch.float64)
    B = M @ M.mT
    return B / torch.linalg.norm(B)


def _model(m: int, n: int, ranks: tuple[int, int], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    A, W = (torch.randn(m, n, generator=generator, dtype=torch.float64) for _ in range(2))
    return A, _psd(m, ranks[0], generator), _psd(n, ranks[1], generator), W


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
@settings(max_examples=25)
def test_the_closed_form_is_the_course_of_training_for_any_shapes_and_ranks(
    m: int, n: int, p: int, q: int, seed: int
) -> None:
    A, B, C, W = _model(m, n, (p, q), seed)
    course = torch.stack(list(islice(gradient_course(A, B, C, W, rate=0.7), 31)))
    torch.testing.assert_close(gradient_at(course[0], B, C, rate=0.7, times=torch.arange(31)), course)


@given(st.integers(2, 7), st.integers(2, 7), st.integers(0, 1000))
@settings(max_examples=25)
def test_the_stable_rank_never_exceeds_the_lemmas_bound_where_b_and_c_are_definite(m: int, n: int, seed: int) -> None:
    A, B, C, W = _model(m, n, (2 * m, 2 * n), seed)
    G = A - B @ W @ C
    times = torch.arange(0, 200, 10)
    ranks = stable_rank(singular_values(gradient_at(G, B, C, rate=1.0, times=times)))
    assert bool((ranks <= stable_rank_bound(G, B, C, rate=1.0, times=times) * (1 + 1e-9)).all())


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 1000))
@settings(max_examples=25)
def test_what_does_not_see_b_or_c_is_what_remains(p: int, q: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    G = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    P, Q = (W[:, :k] for W, k in zip(orthogonal_weights([6, 6, 6], 1.0, generator=generator), (p, q), strict=True))
    B, C = P @ P.mT, Q @ Q.mT
    expected = G - B @ G @ C  # a pair (i, j) never shrinks if β_i = 0 or γ_j = 0
    torch.testing.assert_close(slowest_part(G, B, C), expected)
    [late] = gradient_at(G, B, C, rate=0.5, times=torch.tensor([1000]))
    torch.testing.assert_close(late, expected)


def test_the_limit_is_the_stable_rank_of_the_slowest_part_and_at_most_the_smaller_multiplicity() -> None:
    generator = torch.Generator().manual_seed(0)
    G = torch.randn(8, 9, generator=generator, dtype=torch.float64)
    B = torch.diag(torch.tensor([0.2] * 3 + [1.0] * 5, dtype=torch.float64))
    C = torch.diag(torch.tensor([0.5] * 2 + [0.9] * 7, dtype=torch.float64))
    limit = stable_rank(singular_values(G[:3, :2]))
    [late] = gradient_at(G, B, C, rate=1.0, times=torch.tensor([300]))
    torch.testing.assert_close(stable_rank(singular_values(late)), limit)
    torch.testing.assert_close(stable_rank(singular_values(slowest_part(G, B, C))), limit)
    torch.testing.assert_close(stable_rank_bound(G, B, C, rate=1.0, times=torch.tensor([300]))[0], limit)
    assert 1 <= limit <= 2


def test_a_gradient_without_a_slowest_part_has_no_bound() -> None:
    G = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    B, C = torch.eye(1, dtype=torch.float64), torch.diag(torch.tensor([0.5, 1.0], dtype=torch.float64))
    assert stable_rank_bound(G, B, C, rate=1.0, times=torch.tensor([5])).isinf().all()


def test_one_speed_for_all_keeps_the_stable_rank() -> None:
    G, _, _, _ = _model(4, 5, (4, 5), 0)
    B, C = torch.eye(4, dtype=torch.float64), torch.eye(5, dtype=torch.float64)
    expected = stable_rank(singular_values(G)).expand(2)
    torch.testing.assert_close(stable_rank_bound(G, B, C, rate=1.0, times=torch.tensor([0, 9])), expected)


def test_single_precision_stays_single() -> None:
    A, B, C, W = (M.float() for M in _model(5, 4, (6, 6), 0))
    G = gradient_at(A - B @ W @ C, B, C, rate=0.5, times=torch.tensor([3]))
    assert G.dtype == torch.float32
    expected = next(islice(gradient_course(A, B, C, W, rate=0.5), 3, None))
    torch.testing.assert_close(G[0], expected, atol=1e-5, rtol=1e-4)


def test_matrices_that_the_model_does_not_allow_are_named() -> None:
    G, B, C, _ = _model(4, 5, (4, 5), 0)
    times = torch.tensor([1])
    with pytest.raises(ValueError, match=r"B \(5, 5\) must be \(4, 4\)"):
        gradient_at(G, C, C, rate=1.0, times=times)
    with pytest.raises(ValueError, match=r"C .* positive semi-definite"):
        gradient_at(G, B, -C, rate=1.0, times=times)
    with pytest.raises(ValueError, match=r"B .* symmetric"):
        slowest_part(G, B + torch.triu(B, 1), C)
    with pytest.raises(ValueError, match="rate must be at most"):
        stable_rank_bound(G, B, C, rate=1e3, times=times)
    with pytest.raises(ValueError, match="positive definite for the bound"):
        stable_rank_bound(G, torch.zeros_like(B), C, rate=1.0, times=times)
