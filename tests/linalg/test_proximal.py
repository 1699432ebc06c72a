"""Norms' proximal maps: against scalar and convex minimisation, and the spectra of the convergence theory."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eckart.linalg.norms import k_support_norm, nuclear_norm, schatten_norm, vector_k_support_norm
from eckart.linalg.proximal import prox_k_support_squared, prox_nuclear, prox_schatten
from eckart.linalg.proximal_vector import prox_power, prox_vector_k_support_squared

Y = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.2], dtype=torch.float64)


def _diagonal(values) -> torch.Tensor:
    return torch.diag(torch.as_tensor(values, dtype=torch.float64))


@pytest.mark.parametrize("step", [0.1, 0.3, 0.6, 1.2])
def test_two_factors_with_weight_decay_end_at_the_nuclear_prox(step):
    # C1: gradient descent on ½‖UVᵀ − Y‖² + ½λ(‖U‖² + ‖V‖²).
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.randn(5, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    for _ in range(4000):
        residual = U @ V.T - torch.diag(Y)
        U, V = U - 0.1 * (residual @ V + step * U), V - 0.1 * (residual.T @ U + step * V)
    torch.testing.assert_close(U @ V.T, prox_nuclear(torch.diag(Y), step), atol=1e-4, rtol=0)
    torch.testing.assert_close(U.T @ U, V.T @ V, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("depth", "expected"), [(3, [2.9301, 1.9195, 0.8963, 0.3593, 0.0]), (4, [2.9417, 1.928, 0.8943, 0.0, 0.0])]
)
def test_depth_kills_small_modes_and_hardly_shrinks_large_ones(depth, expected):
    # C2: weight decay 0.1 on L layers is the Schatten-2/L penalty ½λL Σσ^{2/L}.
    X = prox_schatten(torch.diag(Y), 2 / depth, 0.5 * 0.1 * depth)
    torch.testing.assert_close(X.diagonal(), torch.tensor(expected, dtype=torch.float64), atol=5e-5, rtol=0)


def test_k_support_prox_with_k_1_is_the_closed_form_of_the_squared_nuclear_norm():
    # C4: σ − μ with μ = λ Σ_{i≤ρ} σ_i / (1 + λρ), the largest ρ with σ_ρ > μ.
    for step in (0.05, 0.3, 1.0, 7.0):
        rho = torch.arange(1, 6, dtype=torch.float64)
        mu = step * Y.cumsum(0) / (1 + step * rho)
        last = int((mu < Y).nonzero().max())
        expected = (Y - mu[last]).clamp(min=0)
        X = prox_k_support_squared(torch.diag(Y), 1, step)
        torch.testing.assert_close(X.diagonal(), expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize("k", [2, 3])
def test_k_support_prox_is_where_block_dropout_ends(k):
    # C6 in its variational form: no admissible θ does better, by scipy's constrained minimiser.
    minimize = pytest.importorskip("scipy.optimize").minimize
    w, step = Y.numpy(), 0.7
    best = minimize(
        lambda t: float(np.sum(w**2 / (t + step))),
        np.full(5, k / 5),
        bounds=[(0, 1)] * 5,
        constraints={"type": "ineq", "fun": lambda t: k - t.sum()},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    expected = torch.from_numpy(best.x * w / (best.x + step))
    torch.testing.assert_close(prox_vector_k_support_squared(Y, k, step), expected, atol=1e-5, rtol=0)


@settings(max_examples=25, deadline=None)
@given(d=st.integers(1, 12), k=st.integers(1, 12), step=st.floats(1e-3, 1e3), seed=st.integers(0, 999))
def test_no_step_away_from_the_k_support_prox_lowers_the_objective(d, k, step, seed):
    k = min(d, k)
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(d, generator=generator, dtype=torch.float64) * torch.rand(d, generator=generator).double() ** 3

    def objective(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * (x - w).square().sum(-1) + 0.5 * step * vector_k_support_norm(x, k).square()

    x = prox_vector_k_support_squared(w, k, step)
    directions = torch.randn(200, d, generator=generator, dtype=torch.float64)
    for size in (1e-4, 1e-2, 1.0):
        assert bool((objective(x + size * directions) >= objective(x) - 1e-12).all())


@settings(max_examples=25, deadline=None)
@given(p=st.floats(0.05, 2.0), step=st.floats(1e-3, 10), x=st.floats(0, 10))
def test_prox_power_is_the_global_minimiser_on_a_grid(p, step, x):
    def objective(s: torch.Tensor) -> torch.Tensor:
        return 0.5 * (s - x) ** 2 + step * s.abs() ** p

    s = prox_power(torch.tensor([x, -x], dtype=torch.float64), p, step)
    assert s[1] == -s[0]
    grid = torch.linspace(0, max(x, 1e-9), 20001, dtype=torch.float64)
    assert objective(s[0]) <= objective(grid).min() + 1e-12


@pytest.mark.parametrize("p", [0.1, 0.5, 2 / 3, 0.9])
def test_prox_power_jumps_where_zero_and_the_stationary_point_tie(p):
    step = 0.7
    jump = (2 * step * (1 - p)) ** (1 / (2 - p))
    at = jump + step * p * jump ** (p - 1)
    below, above = prox_power(torch.tensor([at - 1e-9, at + 1e-9], dtype=torch.float64), p, step).tolist()
    assert below == 0
    assert above == pytest.approx(jump, abs=1e-6)


def test_special_powers_agree_with_their_closed_forms(matrix):
    torch.testing.assert_close(prox_schatten(matrix, 1, 0.3), prox_nuclear(matrix, 0.3))
    torch.testing.assert_close(prox_schatten(matrix, 2, 0.3), matrix / 1.6)
    torch.testing.assert_close(prox_schatten(matrix, 1 + 1e-9, 0.3), prox_nuclear(matrix, 0.3), atol=1e-6, rtol=0)
    torch.testing.assert_close(prox_k_support_squared(matrix, min(matrix.shape), 0.3), matrix / 1.3)


def test_prox_is_defined_for_the_menagerie_and_never_raises_the_penalty(matrix):
    step, p, k = 0.4, 0.5, max(1, min(matrix.shape) // 2)
    for X, penalty in (
        (prox_nuclear(matrix, step), lambda W: step * nuclear_norm(W)),
        (prox_schatten(matrix, p, step), lambda W: step * schatten_norm(W, p) ** p),
        (prox_k_support_squared(matrix, k, step), lambda W: 0.5 * step * k_support_norm(W, k) ** 2),
    ):
        assert bool(torch.isfinite(X).all())
        assert 0.5 * (X - matrix).square().sum() + penalty(X) <= penalty(matrix) + 1e-10


def test_prox_of_a_batch_is_the_batch_of_proxes(generator):
    W = torch.randn(3, 6, 4, generator=generator, dtype=torch.float64)
    W[1] = 0
    for prox in (
        lambda X: prox_nuclear(X, 0.2),
        lambda X: prox_schatten(X, 0.5, 0.2),
        lambda X: prox_k_support_squared(X, 2, 0.2),
    ):
        torch.testing.assert_close(prox(W), torch.stack([prox(X) for X in W]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_prox_keeps_the_dtype_and_computes_above_it(dtype, generator):
    W = torch.randn(8, 5, generator=generator).to(dtype)
    X = prox_k_support_squared(W, 2, 0.1)
    assert X.dtype == dtype
    torch.testing.assert_close(X, prox_k_support_squared(W.double(), 2, 0.1).to(dtype))


def test_a_step_of_zero_changes_nothing(generator):
    W = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    for X in (prox_nuclear(W, 0), prox_schatten(W, 0.5, 0), prox_k_support_squared(W, 2, 0)):
        torch.testing.assert_close(X, W)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda W: prox_nuclear(W, -1), "step must be"),
        (lambda W: prox_nuclear(W, math.nan), "step must be"),
        (lambda W: prox_schatten(W, 3, 0.1), "p must satisfy"),
        (lambda W: prox_k_support_squared(W, 5, 0.1), "k must be from 1 to 4"),
        (lambda W: prox_nuclear(W / 0, 0.1), "NaN or infinite"),
    ],
)
def test_prox_names_the_argument_that_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(6, 4))


def test_the_k_support_map_is_exact_to_the_rounding_of_float64() -> None:
    S = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    threshold = 0.2 * 14 / (1 + 0.2 * 4)  # 0.2 is not a float32
    assert torch.allclose(
        prox_vector_k_support_squared(S, 1, 0.2), (S - threshold).clamp(min=0), rtol=1e-14, atol=1e-14
    )
