"""Weighted approximation: the closed-form bound is met for every kind of covariance, and nothing nearby does better."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eckart.linalg.approximation import approximation_error, weighted_approximation, weighted_singular_values

KINDS = ["plenty", "few_tokens", "rank_one", "zero", "dead_channels", "outliers", "ill_conditioned"]
FLOOR = 1e-7  # of ‖G^{1/2}‖‖W‖‖C^{1/2}‖: squares in float64 carry 1.5e-8


def inputs(kind: str, n: int, seed: int = 0) -> Tensor:
    """Columns x of calibration inputs (n, N) whose covariance is singular in the way that `kind` says."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, 4 * n, dtype=torch.float64, generator=generator)
    X = torch.randn(n, n, dtype=torch.float64, generator=generator) @ X / n**0.5
    if kind == "few_tokens":
        return X[:, : n // 3]
    if kind == "rank_one":
        return X[:, :1]
    if kind == "zero":
        return X * 0
    if kind == "dead_channels":
        X[::2] = 0
    if kind == "outliers":
        X[n // 2] *= 100
    if kind == "ill_conditioned":
        Q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))[0]
        X = (Q * torch.logspace(0, -8, n, dtype=torch.float64)) @ X
    return X


def root(C: Tensor | None, size: int) -> Tensor:
    """The symmetric square root, by a path of its own."""
    if C is None:
        return torch.eye(size, dtype=torch.float64)
    values, Q = torch.linalg.eigh(C.double())
    return (Q * values.clamp_min(0).sqrt()) @ Q.T


def bound(W: Tensor, rank: int, C: Tensor | None = None, G: Tensor | None = None) -> tuple[float, float]:
    """The least weighted error at this rank, and the weighted norm of W."""
    S = torch.linalg.svdvals(root(G, W.shape[0]) @ W.double() @ root(C, W.shape[1]))
    return float(S[rank:].norm()), float(S.norm())


def direct_error(W: Tensor, B: Tensor, A: Tensor, C: Tensor | None, G: Tensor | None) -> float:
    return float((root(G, W.shape[0]) @ (W.double() - B.double() @ A.double()) @ root(C, W.shape[1])).norm())


@pytest.fixture(params=[(12, 20), (20, 12), (15, 15)], ids=["wide", "tall", "square"])
def weight(request: pytest.FixtureRequest, generator: torch.Generator) -> Tensor:
    return torch.randn(*request.param, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sides", ["inputs", "outputs", "both"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_error_meets_the_closed_form_bound(kind: str, sides: str, dtype: torch.dtype, weight: Tensor) -> None:
    W = weight.to(dtype)
    X, Y = inputs(kind, W.shape[1]), inputs(kind, W.shape[0], seed=1)
    C = X @ X.T if sides != "outputs" else None
    G = Y @ Y.T if sides != "inputs" else None
    for rank in (1, 4, 11, 12):
        B, A = weighted_approximation(W, rank, input_covariance=C, output_covariance=G)
        assert B.dtype == A.dtype == dtype
        assert B.isfinite().all()
        assert A.isfinite().all()
        least, norm = bound(W, rank, C, G)
        # Factors in float32 are rounded once more.
        slack = FLOOR * norm + (torch.finfo(dtype).eps * spread(W, B, A, C, G) if dtype == torch.float32 else 0)
        assert direct_error(W, B, A, C, G) <= least + slack


@pytest.mark.parametrize("sides", ["inputs", "outputs", "both"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_covariance_kept_in_float32_costs_no_more_than_its_own_rounding(
    kind: str, sides: str, weight: Tensor
) -> None:
    m, n = weight.shape
    X, Y = inputs(kind, n), inputs(kind, m, seed=1)
    C = X @ X.T if sides != "outputs" else torch.eye(n, dtype=torch.float64)
    G = Y @ Y.T if sides != "inputs" else torch.eye(m, dtype=torch.float64)
    rounded = {"input_covariance": C.float(), "output_covariance": G.float()}
    rounded = {k: v for k, v in rounded.items() if not k.startswith({"inputs": "out", "outputs": "in"}.get(sides, "-"))}
    noise = 4 * torch.finfo(torch.float32).eps * float(C.norm() * G.norm() * weight.norm() ** 2)
    for rank in (1, 4, 12):
        B, A = weighted_approximation(weight, rank, **rounded)
        least, _ = bound(weight, rank, C, G)
        assert direct_error(weight, B, A, C, G) ** 2 <= least**2 + noise


def spread(W: Tensor, B: Tensor, A: Tensor, C: Tensor | None, G: Tensor | None) -> float:
    """How much a relative error in each entry of B and A can weigh."""
    size = B.double().abs() @ A.double().abs()
    return float((root(G, W.shape[0]).abs() @ size @ root(C, W.shape[1]).abs()).norm())


@pytest.mark.parametrize("kind", KINDS)
def test_fitting_changed_inputs_meets_the_closed_form_bound(kind: str, weight: Tensor) -> None:
    m, n = weight.shape
    X = inputs("plenty", n)
    X_hat = inputs(kind, n, seed=2)
    X = X[:, : X_hat.shape[1]]
    C, M = X_hat @ X_hat.T, X @ X_hat.T
    pinv = torch.linalg.pinv(root(C, n), rtol=1e-7)
    S = torch.linalg.svdvals(weight @ M @ pinv)
    fixed = (weight @ X).norm() ** 2 - S.norm() ** 2  # what no weight at all can remove
    for rank in (1, 5, min(m, n)):
        B, A = weighted_approximation(weight, rank, input_covariance=C, cross=M)
        least = (fixed + S[rank:].norm() ** 2).clamp_min(0).sqrt()
        assert (weight @ X - B @ A @ X_hat).norm() <= least + 1e-6 * (weight @ X).norm()


def test_fitting_changed_inputs_is_the_printed_formula_where_the_inputs_go(weight: Tensor) -> None:
    n = weight.shape[1]
    X, X_hat = inputs("few_tokens", n), inputs("few_tokens", n, seed=3)
    C, M = X_hat @ X_hat.T, X @ X_hat.T
    pinv = torch.linalg.pinv(root(C, n), rtol=1e-7)
    U, S, Vh = torch.linalg.svd(weight @ M @ pinv)
    printed = (U[:, :3] * S[:3]) @ Vh[:3] @ pinv  # [W M C^{+1/2}]_r C^{+1/2}
    B, A = weighted_approximation(weight, 3, input_covariance=C, cross=M)
    torch.testing.assert_close(B @ A @ X_hat, printed @ X_hat, rtol=1e-6, atol=1e-6)


def test_unchanged_inputs_make_the_anchored_form_the_plain_one(weight: Tensor) -> None:
    X = inputs("few_tokens", weight.shape[1])
    C = X @ X.T
    B, A = weighted_approximation(weight, 3, input_covariance=C, cross=C)
    D, E = weighted_approximation(weight, 3, input_covariance=C)
    torch.testing.assert_close(B @ A, D @ E)


def test_anchoring_with_both_metrics_beats_every_anchored_fit_with_one(weight: Tensor) -> None:
    m, n = weight.shape
    X, X_hat, Y = inputs("plenty", n), inputs("plenty", n, seed=5), inputs("outliers", m, seed=6)
    C, M, G = X_hat @ X_hat.T, X @ X_hat.T, Y @ Y.T

    def error(pair: tuple[Tensor, Tensor]) -> float:
        return float((root(G, m) @ (weight @ X - pair[0] @ pair[1] @ X_hat)).norm())

    both = error(weighted_approximation(weight, 3, input_covariance=C, output_covariance=G, cross=M))
    assert both < error(weighted_approximation(weight, 3, input_covariance=C, cross=M))
    assert both < error(weighted_approximation(weight, 3, input_covariance=C, output_covariance=G))


@settings(deadline=None, max_examples=40)
@given(
    m=st.integers(1, 12),
    n=st.integers(1, 12),
    data=st.data(),
    kinds=st.tuples(st.sampled_from(["plenty", "rank_one", "dead_channels", "outliers"]), st.sampled_from(KINDS)),
    sides=st.sampled_from(["none", "inputs", "outputs", "both"]),
    seed=st.integers(0, 1000),
)
def test_no_change_of_the_factors_does_better(m, n, data, kinds, sides, seed) -> None:  # type: ignore[no-untyped-def]
    rank = data.draw(st.integers(1, min(m, n)))
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(m, n, dtype=torch.float64, generator=generator)
    X, Y = inputs(kinds[0], n, seed), inputs(kinds[1], m, seed + 1)
    C = X @ X.T if sides in ("inputs", "both") else None
    G = Y @ Y.T if sides in ("outputs", "both") else None
    B, A = weighted_approximation(W, rank, input_covariance=C, output_covariance=G)
    error = direct_error(W, B, A, C, G)
    least, _ = bound(W, rank, C, G)
    floor = FLOOR * float(root(G, m).norm() * W.norm() * root(C, n).norm())
    assert error == pytest.approx(least, abs=floor)
    for size in (1e-4, 1e-2, 1.0):
        dB, dA = (size * torch.randn(F.shape, dtype=torch.float64, generator=generator) for F in (B, A))
        assert direct_error(W, B + dB, A + dA, C, G) >= error - floor


@pytest.mark.parametrize("sides", ["none", "inputs", "outputs", "both"])
def test_the_weighted_singular_values_predict_the_error_of_every_rank(sides: str, weight: Tensor) -> None:
    m, n = weight.shape
    X, Y = inputs("outliers", n), inputs("dead_channels", m, seed=1)
    C = X @ X.T if sides in ("inputs", "both") else None
    G = Y @ Y.T if sides in ("outputs", "both") else None
    metrics = {"input_covariance": C, "output_covariance": G}
    S = weighted_singular_values(weight, **metrics)
    assert S.dtype == torch.float64
    assert S.shape == (min(m, n),)
    torch.testing.assert_close(
        S, torch.linalg.svdvals(root(G, m) @ weight @ root(C, n)), rtol=1e-6, atol=FLOOR * float(S[0])
    )
    for rank in (1, 6, 12):
        error = approximation_error(weight, *weighted_approximation(weight, rank, **metrics), **metrics)
        torch.testing.assert_close(error, S[rank:].norm(), rtol=1e-6, atol=FLOOR * float(S[0]))


def test_the_anchored_singular_values_predict_what_rank_still_removes(weight: Tensor) -> None:
    n = weight.shape[1]
    X, X_hat = inputs("plenty", n), inputs("few_tokens", n, seed=4)
    metrics = {"input_covariance": X_hat @ X_hat.T, "cross": X[:, : X_hat.shape[1]] @ X_hat.T}
    S = weighted_singular_values(weight, **metrics)
    B, A = weighted_approximation(weight, 2, **metrics)
    torch.testing.assert_close(approximation_error(weight, B, A, **metrics), S[2:].norm(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sides", ["inputs", "outputs", "both"])
def test_one_call_at_full_rank_serves_every_smaller_rank(sides: str, weight: Tensor) -> None:
    X, Y = inputs("plenty", weight.shape[1]), inputs("few_tokens", weight.shape[0], seed=1)
    C = X @ X.T if sides != "outputs" else None
    G = Y @ Y.T if sides != "inputs" else None
    B, A = weighted_approximation(weight, min(weight.shape), input_covariance=C, output_covariance=G)
    for rank in (1, 3):
        D, E = weighted_approximation(weight, rank, input_covariance=C, output_covariance=G)
        torch.testing.assert_close(B[:, :rank] @ A[:rank], D @ E, rtol=1e-6, atol=1e-6)


def test_inputs_alone_give_an_orthonormal_left_factor_that_projects(weight: Tensor) -> None:
    X = inputs("few_tokens", weight.shape[1])
    B, A = weighted_approximation(weight, 9, input_covariance=X @ X.T)
    torch.testing.assert_close(B.T @ B, torch.eye(9, dtype=torch.float64))
    torch.testing.assert_close(A, B.T @ weight)


def test_outputs_alone_give_an_orthonormal_right_factor_that_projects(weight: Tensor) -> None:
    Y = inputs("few_tokens", weight.shape[0])
    B, A = weighted_approximation(weight, 9, output_covariance=Y @ Y.T)
    torch.testing.assert_close(A @ A.T, torch.eye(9, dtype=torch.float64))
    torch.testing.assert_close(B, weight @ A.T)


@pytest.mark.parametrize("sides", ["inputs", "outputs", "both", "dead_inputs"])
def test_an_all_zero_covariance_falls_back_to_the_plain_approximation(sides: str, weight: Tensor) -> None:
    m, n = weight.shape
    C = None if sides == "outputs" else torch.zeros(n, n)
    G = torch.zeros(m, m) if sides in ("outputs", "both") else None
    if sides == "dead_inputs":
        G = torch.eye(m) * 7
    B, A = weighted_approximation(weight, 4, input_covariance=C, output_covariance=G)
    U, S, Vh = torch.linalg.svd(weight)
    torch.testing.assert_close(B @ A, (U[:, :4] * S[:4]) @ Vh[:4])


def test_ranks_that_calibration_does_not_need_approximate_the_weight_itself(weight: Tensor) -> None:
    X = inputs("rank_one", weight.shape[1])
    B, A = weighted_approximation(weight, 4, input_covariance=X @ X.T)
    u = weight @ X / (weight @ X).norm()
    U, S, Vh = torch.linalg.svd(weight - u @ (u.T @ weight))
    best = u @ (u.T @ weight) + (U[:, :3] * S[:3]) @ Vh[:3]
    torch.testing.assert_close(B @ A, best, rtol=1e-6, atol=1e-6)


def test_full_rank_gives_the_weight_back(matrix: Tensor) -> None:
    X = inputs("plenty", matrix.shape[1])
    B, A = weighted_approximation(matrix, min(matrix.shape), input_covariance=X @ X.T)
    torch.testing.assert_close(B @ A, matrix, rtol=1e-9, atol=1e-9)


def test_every_matrix_of_the_menagerie_meets_the_bound(matrix: Tensor) -> None:
    m, n = matrix.shape
    X, Y = inputs("dead_channels", n), inputs("outliers", m, seed=1)
    C, G = X @ X.T, Y @ Y.T
    for metrics in ((C, None), (None, G), (C, G), (None, None)):
        for rank in {1, (min(m, n) + 1) // 2}:
            B, A = weighted_approximation(matrix, rank, input_covariance=metrics[0], output_covariance=metrics[1])
            least, norm = bound(matrix, rank, *metrics)
            assert direct_error(matrix, B, A, *metrics) <= least + FLOOR * norm


@pytest.mark.parametrize("sides", ["inputs", "outputs", "both"])
def test_a_stack_equals_its_matrices_one_by_one(sides: str, weight: Tensor) -> None:
    m, n = weight.shape
    kinds = ["plenty", "zero", "rank_one", "few_tokens"]
    W = torch.stack([weight * (i + 1) for i in range(4)])
    C = torch.stack([X @ X.T for X in (inputs(kind, n) for kind in kinds)]) if sides != "outputs" else None
    G = torch.stack([Y @ Y.T for Y in (inputs(kind, m, 1) for kind in kinds)]) if sides != "inputs" else None
    B, A = weighted_approximation(W, 5, input_covariance=C, output_covariance=G)
    S = weighted_singular_values(W, input_covariance=C, output_covariance=G)
    for i in range(4):
        one = {"input_covariance": None if C is None else C[i], "output_covariance": None if G is None else G[i]}
        D, E = weighted_approximation(W[i], 5, **one)
        torch.testing.assert_close(B[i] @ A[i], D @ E, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(S[i], weighted_singular_values(W[i], **one), rtol=1e-6, atol=1e-5)


def test_one_covariance_is_shared_by_a_stack(weight: Tensor) -> None:
    X = inputs("outliers", weight.shape[1])
    B, A = weighted_approximation(torch.stack([weight, -weight]), 2, input_covariance=X @ X.T)
    torch.testing.assert_close(B[0] @ A[0], -(B[1] @ A[1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_lose_only_their_own_rounding(dtype: torch.dtype, weight: Tensor) -> None:
    W = weight.to(dtype)
    X, Y = inputs("outliers", W.shape[1]), inputs("few_tokens", W.shape[0], seed=1)
    C, G = X @ X.T, Y @ Y.T
    for metrics in ((C, None), (None, G), (C, G)):
        B, A = weighted_approximation(W, 4, input_covariance=metrics[0], output_covariance=metrics[1])
        assert B.dtype == A.dtype == dtype
        least, norm = bound(W, 4, *metrics)
        slack = torch.finfo(dtype).eps * max(norm, spread(W, B, A, *metrics))
        assert direct_error(W, B, A, *metrics) <= least + slack


def test_the_scale_of_a_covariance_does_not_matter(weight: Tensor) -> None:
    X, Y = inputs("plenty", weight.shape[1]), inputs("plenty", weight.shape[0])
    for scale in (1e-20, 1e20):
        B, A = weighted_approximation(weight, 3, input_covariance=X @ X.T, output_covariance=Y @ Y.T)
        D, E = weighted_approximation(
            weight, 3, input_covariance=scale * (X @ X.T), output_covariance=(Y @ Y.T) / scale
        )
        torch.testing.assert_close(B @ A, D @ E)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank must be from 1 to 2"),
        ({"rank": 3}, "rank must be from 1 to 2"),
        ({"input_covariance": torch.eye(2)}, r"input_covariance must be \(..., 3, 3\)"),
        ({"output_covariance": torch.eye(3)}, r"output_covariance must be \(..., 2, 2\)"),
        ({"input_covariance": -torch.eye(3)}, "not positive semidefinite"),
        ({"input_covariance": torch.eye(3) + torch.ones(3, 3).triu(1)}, "not symmetric"),
        ({"input_covariance": torch.full((3, 3), torch.nan)}, "NaN or infinite"),
        ({"cross": torch.eye(3)}, "cross needs input_covariance"),
        ({"cross": torch.eye(2), "input_covariance": torch.eye(3)}, "cross must be"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weighted_approximation(torch.ones(2, 3), **({"rank": 1} | arguments))


def test_factors_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="does not give the shape of W"):
        approximation_error(torch.ones(2, 3), torch.ones(2, 1), torch.ones(1, 2))
