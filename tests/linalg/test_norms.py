"""Norms of the spectrum: against torch, the variational form, and the identities of the convergence theory."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eckart.linalg.norms import k_support_norm, nuclear_norm, schatten_norm, vector_k_support_norm


def test_norms_agree_with_torch_over_the_menagerie(matrix):
    nuclear, frobenius, spectral = (torch.linalg.matrix_norm(matrix, ord) for ord in ("nuc", "fro", 2))
    torch.testing.assert_close(nuclear_norm(matrix), nuclear)
    torch.testing.assert_close(schatten_norm(matrix, 1), nuclear)
    torch.testing.assert_close(schatten_norm(matrix, 2), frobenius)
    torch.testing.assert_close(schatten_norm(matrix, math.inf), spectral)
    torch.testing.assert_close(k_support_norm(matrix, 1), nuclear)
    torch.testing.assert_close(k_support_norm(matrix, min(matrix.shape)), frobenius)


def test_balanced_factors_of_depth_l_attain_the_schatten_quasi_norm(menagerie):
    # C2: min Σ‖W_l‖² over W_L … W_1 = X is L ‖X‖_{S_{2/L}}^{2/L}, attained by equal roots of the spectrum.
    X = menagerie["power_law"]
    S = torch.linalg.svdvals(X)
    for depth in (2, 3, 4):
        attained = depth * S.pow(1 / depth).square().sum()
        torch.testing.assert_close(depth * schatten_norm(X, 2 / depth) ** (2 / depth), attained)


@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_a_flat_spectrum_has_k_support_norm_nuclear_over_root_k(k):
    W = 0.7 * torch.eye(8, dtype=torch.float64)  # C6
    torch.testing.assert_close(k_support_norm(W, k), nuclear_norm(W) / math.sqrt(k))


@settings(max_examples=25, deadline=None)
@given(d=st.integers(1, 12), k=st.integers(1, 12), seed=st.integers(0, 999))
def test_k_support_norm_is_dual_to_the_norm_of_the_k_largest(d, k, seed):
    # ‖w‖_k = max ⟨w, u⟩ over u whose k largest entries have norm 1: no u beats it, and one formula of q attains it.
    k = min(k, d)
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(d, generator=generator, dtype=torch.float64)
    norm = vector_k_support_norm(w, k)
    u = torch.randn(500, d, generator=generator, dtype=torch.float64) * w.sign()
    dual = u.abs().sort(-1, descending=True).values[:, :k].norm(dim=-1)
    assert bool(((u @ w) / dual <= norm + 1e-12).all())
    z, attained = w.abs().sort(descending=True).values, []
    for q in range(k):  # the q of C6, by its two inequalities
        tail = z[k - q - 1 :].sum() / (q + 1)
        before = math.inf if k - q - 1 == 0 else float(z[k - q - 2])
        if before > tail >= z[k - q - 1]:
            attained.append((z[: k - q - 1].square().sum() + (q + 1) * tail**2).sqrt())
    torch.testing.assert_close(norm, attained[0])


def test_k_support_norm_falls_from_l1_to_l2_as_k_grows(generator):
    w = torch.randn(4, 9, generator=generator, dtype=torch.float64)
    norms = torch.stack([vector_k_support_norm(w, k) for k in range(1, 10)])
    assert bool((norms.diff(dim=0) <= 1e-12).all())
    torch.testing.assert_close(norms[0], w.abs().sum(-1))
    torch.testing.assert_close(norms[-1], w.norm(dim=-1))


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_norms_of_extreme_scales_neither_overflow_nor_vanish(scale):
    w = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(vector_k_support_norm(scale * w, 2) / scale, vector_k_support_norm(w, 2))


def test_norms_are_float64_and_batched(generator):
    W = torch.randn(3, 5, 4, generator=generator).bfloat16()
    for norm in (nuclear_norm, lambda X: schatten_norm(X, 0.5), lambda X: k_support_norm(X, 2)):
        assert norm(W).dtype == torch.float64
        torch.testing.assert_close(norm(W), torch.stack([norm(X) for X in W]))


def test_norms_name_the_argument_that_is_wrong():
    W = torch.ones(3, 4)
    with pytest.raises(ValueError, match="p must be positive"):
        schatten_norm(W, 0)
    with pytest.raises(ValueError, match="k must be from 1 to 3"):
        k_support_norm(W, 4)
    with pytest.raises(ValueError, match="k must be at least 1"):
        vector_k_support_norm(W, 0)


NORMS = {
    "nuclear": nuclear_norm,
    "schatten 1": lambda W: schatten_norm(W, 1),
    "schatten 0.5": lambda W: schatten_norm(W, 0.5),
    "schatten 1.5": lambda W: schatten_norm(W, 1.5),
    "schatten 2": lambda W: schatten_norm(W, 2),
    "schatten 3": lambda W: schatten_norm(W, 3),
    "spectral": lambda W: schatten_norm(W, math.inf),
    "1-support": lambda W: k_support_norm(W, 1),
    "2-support": lambda W: k_support_norm(W, 2),
    "4-support": lambda W: k_support_norm(W, 4),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("shape", [(4, 4), (5, 4), (2, 4, 6)])
def test_norms_can_be_penalties_their_gradients_are_those_of_differences(name, shape, generator):
    W = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(NORMS[name], W)


@pytest.mark.parametrize("name", [name for name in NORMS if name != "schatten 0.5"])
def test_gradients_of_norms_are_subgradients_where_values_vanish_or_repeat(name, menagerie, generator):
    # ‖X‖ ≥ ‖W‖ + ⟨G, X − W⟩ for every X.
    flat = torch.eye(6, 5, dtype=torch.float64)
    for start in (menagerie["rank_deficient"], flat, torch.zeros(6, 5, dtype=torch.float64)):
        W = start.clone().requires_grad_()
        norm = NORMS[name](W)
        (G,) = torch.autograd.grad(norm, W)
        assert bool(torch.isfinite(G).all())
        for size in (1e-6, 1e-2, 1.0):
            X = start + size * torch.randn(start.shape, generator=generator, dtype=torch.float64)
            assert NORMS[name](X) >= norm + (G * (X - start)).sum() - 1e-10


def test_the_gradient_of_the_nuclear_norm_is_the_polar_factor(generator):
    W = torch.randn(6, 4, generator=generator).requires_grad_()
    (G,) = torch.autograd.grad(3 * nuclear_norm(W), W)
    U, _, Vh = torch.linalg.svd(W.detach(), full_matrices=False)
    torch.testing.assert_close(G, 3 * U @ Vh)
    assert G.dtype == torch.float32


def test_a_quasi_norm_has_finite_gradients_at_zero():
    W = torch.diag(torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)).requires_grad_()
    (G,) = torch.autograd.grad(schatten_norm(W, 0.5), W)
    torch.testing.assert_close(G, torch.diag(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)))


def test_without_a_gradient_to_follow_no_graph_is_built():
    W = torch.ones(3, 4).requires_grad_()
    with torch.no_grad():
        assert not nuclear_norm(W).requires_grad
    assert not nuclear_norm(W.detach()).requires_grad
    with pytest.raises(ValueError, match="NaN"):
        nuclear_norm(W / 0 * 0)
