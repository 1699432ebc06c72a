"""The invariant subspaces, by running gradient descent on small deep linear networks (T1–T5 of the overview)."""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eckart.linalg.angles import principal_angles
from eckart.linalg.chain import compressed_chain, spectral_start
from eckart.linalg.invariant import complete, factorization_signal, invariant_subspace, propagate


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Thousands of products of tiny matrices run faster on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    Q = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns), dtype=torch.float64, generator=generator)).Q
    return Q if rows >= columns else Q.mT


def _product(weights: list[Tensor]) -> Tensor:
    P = weights[0]
    for W in weights[1:]:
        P = W @ P
    return P


def _gradients(weights: list[Tensor], residual: Tensor) -> list[Tensor]:
    """∇_{W_l} of a loss whose gradient by the product is `residual`."""
    before = [torch.eye(weights[0].shape[1], dtype=torch.float64)]
    for W in weights[:-1]:
        before.append(W @ before[-1])
    gradients, after = [], residual
    for W, inner in zip(reversed(weights), reversed(before), strict=True):
        gradients.append(after @ inner.mT)
        after = W.mT @ after
    return gradients[::-1]


def _descend(weights: list[Tensor], target: Tensor, rate: float, decay: float = 0.0) -> list[Tensor]:
    """One step on ½‖W_L … W_1 − target‖² with weight decay."""
    steps = _gradients(weights, _product(weights) - target)
    return [W - rate * (S + decay * W) for W, S in zip(weights, steps, strict=True)]


def _low_rank(d: int, r: int, generator: torch.Generator) -> Tensor:
    U, V = _orthogonal(d, r, generator), _orthogonal(d, r, generator)
    return U * torch.linspace(2, 1, r, dtype=torch.float64) @ V.mT


def _off_block(W: Tensor, U: Tensor, V: Tensor, k: int) -> tuple[Tensor, float]:
    """The bulk block of UᵀWV, and the largest entry outside the two diagonal blocks."""
    B = U.mT @ W @ V
    return B[k:, k:], float(torch.maximum(B[:k, k:].abs().max(), B[k:, :k].abs().max()))


@pytest.fixture(scope="module")
def classification() -> dict:
    """d = 30, K = 3, L = 3, N = 120, ε = 1. X has orthonormal rows: the loss is ½‖W_L … W_1 − Y Xᵀ‖² + constant."""
    generator = torch.Generator().manual_seed(0)
    X = _orthogonal(30, 120, generator)
    labels = torch.arange(120) % 3
    target = torch.nn.functional.one_hot(labels, 3).double().mT @ X.mT
    weights = [_orthogonal(30, 30, generator), _orthogonal(30, 30, generator), _orthogonal(3, 30, generator)]
    signal = _gradients(weights, _product(weights) - target)[0]
    return {"weights": weights, "target": target, "signal": signal}


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_t1_classification_moves_every_layer_inside_2k_directions(classification, decay):
    start, rate, steps = classification["weights"], 0.05, 2000
    V = complete(invariant_subspace(classification["signal"], start[0], rank=3))
    bases = propagate(start[:-1], V, eps=1.0)
    weights = start
    for _ in range(steps):
        weights = _descend(weights, classification["target"], rate, decay)
    assert torch.linalg.matrix_norm(_product(weights) - classification["target"]) < 0.2  # it has learned
    shrunk = math.exp(steps * math.log1p(-rate * decay))
    for W, W0, (U, V_l) in zip(weights[:-1], start[:-1], bases, strict=True):
        bulk, off = _off_block(W, U, V_l, 6)
        assert off < 1e-14
        torch.testing.assert_close(bulk, shrunk * torch.eye(24, dtype=torch.float64), atol=1e-14, rtol=0)
        assert int(torch.linalg.matrix_rank(W - shrunk * W0, atol=1e-10)) == 6


def test_t1_is_the_span_of_the_top_right_singular_vectors_of_the_stacked_gradient(classification):
    W, S = classification["weights"][0], classification["signal"]
    stacked = torch.linalg.svd(torch.cat((S, S.mT @ W)), full_matrices=False).Vh[:6].mT
    assert principal_angles(invariant_subspace(S, W, rank=3), stacked).max() < 1e-12


@pytest.mark.parametrize(("depth", "eps", "decay"), [(3, 1.0, 0.0), (3, 0.5, 1e-3), (4, 0.3, 0.0)])
def test_t2_factorisation_moves_every_layer_inside_2r_directions(depth, eps, decay, generator):
    d, r, rate = 30, 3, 0.005
    start = [eps * _orthogonal(d, d, generator) for _ in range(depth)]
    target = _low_rank(d, r, generator)
    V = complete(invariant_subspace(factorization_signal(start, target), start[0], rank=r))
    weights, rho = start, eps
    for _ in range(1000):
        weights = _descend(weights, target, rate, decay)
        rho -= rho * rate * (decay + rho ** (2 * (depth - 1)))
    for W, (U, V_l) in zip(weights, propagate(start, V, eps), strict=True):
        bulk, off = _off_block(W, U, V_l, 2 * r)
        assert off < 1e-14
        torch.testing.assert_close(bulk, rho * torch.eye(d - 2 * r, dtype=torch.float64), atol=1e-14, rtol=0)


def test_t2_the_full_gradient_gives_the_same_directions_although_it_has_full_rank(generator):
    # The null space of the gradient is empty at an ε that is not tiny; its leading directions are still the right ones.
    start = [_orthogonal(30, 30, generator) for _ in range(3)]
    target = _low_rank(30, 3, generator)
    gradient = _gradients(start, _product(start) - target)[0]
    assert int(torch.linalg.matrix_rank(gradient)) == 30
    V = invariant_subspace(factorization_signal(start, target), start[0], rank=3)
    assert principal_angles(V, invariant_subspace(gradient, start[0], rank=3)).max() < 1e-12


def test_t3_the_compressed_chain_follows_the_product_up_to_the_bulk(generator):
    d, r, eps, rate = 100, 5, 1e-2, 0.2
    large = [eps * _orthogonal(d, d, generator) for _ in range(3)]
    target = _low_rank(d, r, generator)
    V = invariant_subspace(factorization_signal(large, target), large[0], rank=r)
    left, inner, right = compressed_chain(large, V, eps)
    assert sum(W.numel() for W in large) == 30_000
    assert sum(W.numel() for W in (left, *inner, right)) == 2_300
    inside, worst = left.mT @ target @ right, 0.0
    for _ in range(800):
        error = torch.linalg.matrix_norm(_product(large) - left @ _product(inner) @ right.mT)
        worst = max(worst, float(error))
        large, inner = _descend(large, target, rate), _descend(inner, inside, rate)
    assert torch.linalg.matrix_norm(_product(large) - target) < 1e-3 * torch.linalg.matrix_norm(target)
    assert worst == pytest.approx(math.sqrt(90) * 1e-6, rel=1e-8)  # 9.4868e-6


def test_t3_holds_for_any_guess_of_the_rank_that_is_large_enough(generator):
    large = [1e-2 * _orthogonal(40, 40, generator) for _ in range(3)]
    target = _low_rank(40, 3, generator)
    V = invariant_subspace(factorization_signal(large, target), large[0], rank=5)
    left, inner, right = compressed_chain(large, V, 1e-2)
    inside = left.mT @ target @ right
    for _ in range(600):
        large, inner = _descend(large, target, 0.2), _descend(inner, inside, 0.2)
    error = torch.linalg.matrix_norm(_product(large) - left @ _product(inner) @ right.mT)
    assert error <= math.sqrt(30) * 1e-6 * (1 + 1e-8)


def test_t4_the_masked_gradient_points_at_the_target_in_completion(generator):
    # 80 % of the entries are never seen, yet the first gradient already leans towards Φ's row space.
    target = _low_rank(200, 3, generator)
    mask = (torch.rand(200, 200, generator=generator) < 0.2).double()
    weights = [1e-3 * _orthogonal(200, 200, generator) for _ in range(3)]
    gradient = _gradients(weights, mask * (_product(weights) - target))[0]
    V = invariant_subspace(gradient, weights[0], rank=3)
    _, _, Vh = torch.linalg.svd(target)
    guess = principal_angles(V, Vh[:3].mT)
    chance = principal_angles(_orthogonal(200, 6, generator), Vh[:3].mT)
    assert guess.cos().square().mean() > 10 * chance.cos().square().mean()


def test_t5_the_spectral_start_is_ahead_of_the_wide_network_at_every_step(generator):
    d, r, eps, rate = 60, 5, 1e-2, 0.2
    target = _low_rank(d, r, generator)
    wide = [eps * _orthogonal(d, d, generator) for _ in range(3)]
    narrow = spectral_start(target, rank=2 * r, depth=3, eps=eps)
    assert sum(W.numel() for W in narrow) == 2 * d * 2 * r + (2 * r) ** 2
    behind = 0
    for _ in range(1000):
        errors = [torch.linalg.matrix_norm(_product(weights) - target) for weights in (wide, narrow)]
        behind += bool(errors[1] > errors[0] + 1e-12)
        wide, narrow = _descend(wide, target, rate), _descend(narrow, target, rate)
    assert behind == 0
    assert errors[1] < 1e-3


def test_complete_keeps_the_columns_and_adds_their_complement(generator):
    V = torch.linalg.qr(torch.randn(2, 9, 4, generator=generator, dtype=torch.float64)).Q
    basis = complete(V)
    assert torch.equal(basis[..., :4], V)
    eye = torch.eye(9, dtype=torch.float64).expand(2, 9, 9)
    torch.testing.assert_close(basis.mT @ basis, eye, atol=1e-14, rtol=0)


def test_invariant_errors_name_the_argument_and_the_remedy(generator):
    W = torch.randn(6, 6, generator=generator)
    with pytest.raises(ValueError, match=r"signal \(5, 6\) and weight \(6, 6\)"):
        invariant_subspace(W[:5], W, 1)
    with pytest.raises(ValueError, match="rank must be at most n/2 = 3"):
        invariant_subspace(W, W, 4)
    with pytest.raises(ValueError, match=r"weights\[1\] .* order them first layer first"):
        propagate([W, W[:, :4]], torch.eye(6), 1.0)
    with pytest.raises(ValueError, match="eps must be positive"):
        spectral_start(W, 2, 3, 0.0)
    with pytest.raises(ValueError, match="depth must be at least 2"):
        spectral_start(W, 2, 1, 0.1)


@settings(deadline=None, max_examples=20)
@given(n=st.integers(2, 10), rank=st.integers(1, 5), seed=st.integers(0, 99), eps=st.sampled_from([1e-3, 1.0, 10.0]))
def test_the_subspace_holds_what_the_signal_reads_and_what_it_writes_through_the_weight(
    n: int, rank: int, seed: int, eps: float
) -> None:
    rank = min(rank, n // 2)
    generator = torch.Generator().manual_seed(seed)
    signal, weight = _low_rank(n, rank, generator), eps * _orthogonal(n, n, generator)
    V = invariant_subspace(signal, weight, rank)
    torch.testing.assert_close(V.mT @ V, torch.eye(2 * rank, dtype=torch.float64))
    torch.testing.assert_close(signal @ V @ V.mT, signal)
    back = weight.mT @ signal
    torch.testing.assert_close(V @ V.mT @ back, back)
    basis = complete(V)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(n, dtype=torch.float64))
    torch.testing.assert_close(basis[:, : 2 * rank], V)
