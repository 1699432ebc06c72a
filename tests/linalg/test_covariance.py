"""Shrinking covariances, and moving a weight to inputs that have changed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eckart.linalg.approximation import weighted_approximation
from eckart.linalg.covariance import anchored_target, psd_eigenvalues, psd_root, require_covariance, shrink


def covariance(n: int, tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    X = torch.randn(n, tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return X, X @ X.T


def test_shrinking_moves_every_eigenvalue_towards_their_mean() -> None:
    _, C = covariance(12, 5, 0)
    values = torch.linalg.eigvalsh(C)
    torch.testing.assert_close(torch.linalg.eigvalsh(shrink(C, 0.2)), 0.8 * values + 0.2 * values.mean())


def test_shrinking_keeps_the_trace_and_the_dtype_of_a_batch() -> None:
    C = torch.stack([covariance(6, 9, seed)[1] for seed in range(3)]).float()
    shrunk = shrink(C, 0.3)
    assert shrunk.dtype == torch.float32
    torch.testing.assert_close(shrunk.diagonal(dim1=-2, dim2=-1).sum(-1), C.diagonal(dim1=-2, dim2=-1).sum(-1))
    assert torch.equal(shrink(C, 0.0), C)


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_an_alpha_outside_zero_to_one_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        shrink(torch.eye(3), alpha)


@pytest.mark.parametrize("tokens", [40, 5, 1])
def test_no_weight_fits_the_old_outputs_better_than_the_target(tokens: int, generator: torch.Generator) -> None:
    W = torch.randn(7, 12, dtype=torch.float64, generator=generator)
    (X, _), (X_hat, C) = covariance(12, tokens, 1), covariance(12, tokens, 2)
    T = anchored_target(W, C, X @ X_hat.T)
    best = torch.linalg.lstsq(X_hat.T, (W @ X).T, driver="gelsd").solution.T
    torch.testing.assert_close((W @ X - T @ X_hat).norm(), (W @ X - best @ X_hat).norm(), rtol=1e-7, atol=1e-7)


def test_the_target_keeps_the_weight_where_the_inputs_never_go(generator: torch.Generator) -> None:
    W = torch.randn(7, 12, dtype=torch.float64, generator=generator)
    (X, _), (X_hat, C) = covariance(12, 5, 1), covariance(12, 5, 2)
    unseen = torch.linalg.qr(X_hat, mode="complete").Q[:, 5:]
    torch.testing.assert_close(anchored_target(W, C, X @ X_hat.T) @ unseen, W @ unseen)


def test_unchanged_inputs_leave_the_weight_as_it_is(generator: torch.Generator) -> None:
    W = torch.randn(7, 12, dtype=torch.float64, generator=generator)
    for tokens in (3, 30):
        _, C = covariance(12, tokens, 1)
        assert torch.equal(anchored_target(W, C, C), W)


def test_a_dead_covariance_leaves_the_weight_as_it_is() -> None:
    W = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(anchored_target(W, torch.zeros(3, 3), torch.zeros(3, 3)), W)


def test_rounding_in_a_float32_covariance_is_not_taken_for_a_signal(generator: torch.Generator) -> None:
    W = torch.randn(7, 64, dtype=torch.float64, generator=generator)
    (X, _), (X_hat, C) = covariance(64, 20, 1), covariance(64, 20, 2)
    exact = anchored_target(W, C, X @ X_hat.T)
    rounded = anchored_target(W, C.float(), (X @ X_hat.T).float())
    assert (rounded - exact).norm() < 1e-4 * exact.norm()
    assert rounded.dtype == W.dtype


def test_a_stack_of_layers_with_one_input_shares_the_covariance(generator: torch.Generator) -> None:
    W = torch.randn(2, 4, 6, dtype=torch.float64, generator=generator)
    (X, _), (X_hat, C) = covariance(6, 30, 1), covariance(6, 30, 2)
    M = X @ X_hat.T
    T = anchored_target(W, C, M)
    torch.testing.assert_close(T[1], anchored_target(W[1], C, M))
    torch.testing.assert_close(T.flatten(0, 1), anchored_target(W.flatten(0, 1), C, M))


def test_shrinking_both_covariances_penalises_leaving_the_weight(generator: torch.Generator) -> None:
    W = torch.randn(7, 12, dtype=torch.float64, generator=generator)
    (X, _), (X_hat, C) = covariance(12, 5, 1), covariance(12, 5, 2)
    M, alpha = X @ X_hat.T, 0.1
    T = anchored_target(W, shrink(C, alpha), (1 - alpha) * (M - C) + shrink(C, alpha))
    penalty = (alpha / (1 - alpha) * C.trace() / 12).sqrt()  # of ‖W X − T X̂‖² + penalty²‖W − T‖²
    eye = penalty * torch.eye(12, dtype=torch.float64)
    best = torch.linalg.lstsq(torch.cat((X_hat, eye), 1).T, (W @ torch.cat((X, eye), 1)).T).solution.T
    torch.testing.assert_close(T, best)


def test_psd_eigenvalues_are_the_squared_singular_values_of_the_data(matrix: torch.Tensor) -> None:
    N = len(matrix)
    values = psd_eigenvalues(matrix.T @ matrix / N)
    S = torch.zeros(matrix.shape[1], dtype=torch.float64)
    S[: min(matrix.shape)] = torch.linalg.svdvals(matrix)
    torch.testing.assert_close(values, S.square() / N, rtol=1e-9, atol=1e-14 * float(S[0]) ** 2 + 1e-300)


INDEFINITE = torch.tensor([[1.0, 2.0], [2.0, 1.0]])


def test_an_indefinite_matrix_is_no_covariance_also_in_a_batch_of_larger_ones() -> None:
    hidden = torch.stack((1e8 * torch.eye(2), INDEFINITE))
    for C in (INDEFINITE, hidden, -torch.eye(2), 1e-30 * INDEFINITE, 1e200 * INDEFINITE.double()):
        with pytest.raises(ValueError, match="C is not positive semidefinite: eigenvalues from"):
            psd_eigenvalues(C)
    with pytest.raises(ValueError, match="input_covariance is not positive semidefinite"):
        weighted_approximation(torch.eye(2), 1, input_covariance=INDEFINITE)
    with pytest.raises(ValueError, match="output_covariance is not positive semidefinite"):
        weighted_approximation(torch.eye(2), 1, output_covariance=hidden)
    with pytest.raises(ValueError, match="not symmetric"):
        psd_eigenvalues(torch.stack((1e8 * torch.eye(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_covariances_that_were_summed_or_kept_in_low_precision_pass(
    dtype: torch.dtype, generator: torch.Generator
) -> None:
    for n, tokens in ((300, 20), (300, 1), (64, 2000)):
        X = torch.randn(n, tokens, generator=generator)
        X[0] *= 100
        C = torch.zeros(n, n)
        for part in X.split(16, dim=1):
            C += part @ part.T / (1e4 * tokens)
        assert float(psd_eigenvalues(C.to(dtype))[-1]) >= 0


@settings(deadline=None, max_examples=25)
@given(
    n=st.integers(1, 12),
    tokens=st.integers(0, 15),
    scale=st.sampled_from([1e-100, 1e-6, 1.0, 1e100]),
    alpha=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_a_sum_of_squares_is_a_covariance_with_a_root_and_shrinks_to_one(
    n: int, tokens: int, scale: float, alpha: float, seed: int
) -> None:
    C = scale * covariance(n, tokens, seed)[1]
    root = psd_root(require_covariance("C", C, n))
    torch.testing.assert_close(root @ root.mT, C, rtol=1e-9, atol=1e-12 * float(C.abs().max()))
    values = psd_eigenvalues(C)
    assert bool((values >= 0).all())
    torch.testing.assert_close(values.sum(), C.trace())
    shrunk = psd_eigenvalues(shrink(C, alpha))
    torch.testing.assert_close(shrunk.sum(), C.trace())
    assert float(shrunk[-1]) >= float(values[-1]) - 1e-12 * float(values[0])
