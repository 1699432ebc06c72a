"""find_range, refresh, captured_energy: against the exact SVD, and on gradients that drift."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from eckart.linalg.subspace import captured_energy, find_range, refresh


def _optimal(G: torch.Tensor, rank: int) -> torch.Tensor:
    energy = torch.linalg.eigvalsh(G.double() @ G.double().mT).flip(-1)
    return energy[..., :rank].sum(-1) / energy.sum(-1)


def _orthonormal_error(Q: torch.Tensor) -> float:
    return float((Q.mT @ Q - torch.eye(Q.shape[-1], dtype=Q.dtype)).abs().max())


def _drifting(m: int, n: int, steps: int, drift: float, generator: torch.Generator, noise: float = 0.01):
    """Gradients with spectrum σ_i = i^-0.4 in subspaces that turn by `drift` a step, plus full-rank noise."""
    k = min(m, n) // 2
    U = torch.linalg.qr(torch.randn(m, k, generator=generator))[0]
    V = torch.linalg.qr(torch.randn(n, k, generator=generator))[0]
    S = torch.arange(1, k + 1) ** -0.4
    for _ in range(steps):
        yield U * S @ V.mT + noise * torch.randn(m, n, generator=generator) / n**0.5
        U = torch.linalg.qr(U + drift * torch.randn(m, k, generator=generator) / m**0.5)[0]
        V = torch.linalg.qr(V + drift * torch.randn(n, k, generator=generator) / n**0.5)[0]


def test_find_range_captures_nearly_the_optimum_over_the_menagerie(matrix):
    for rank in {1, min(3, *matrix.shape), min(matrix.shape)}:
        Q = find_range(matrix, rank, power=2)
        assert Q.shape == (matrix.shape[0], rank)
        assert _orthonormal_error(Q) < 1e-13
        best = _optimal(matrix, rank) if matrix.any() else 1.0
        assert captured_energy(matrix, Q) >= 0.99 * best  # pure noise, whose spectrum is flat, is the hardest


def test_find_range_is_exact_when_the_sketch_spans_the_matrix(menagerie):
    G = menagerie["rank_deficient"]
    U = torch.linalg.svd(G).U[:, :2]
    Q = find_range(G, 2)
    torch.testing.assert_close(Q @ Q.mT, U @ U.mT, atol=1e-12, rtol=0)
    torch.testing.assert_close((Q * U).sum(0).abs(), torch.ones(2, dtype=G.dtype))  # best direction first


def test_the_same_seed_gives_the_same_bits(generator):
    G = torch.randn(30, 40, generator=generator)
    assert torch.equal(find_range(G, 4), find_range(G, 4))
    seeds = [torch.Generator().manual_seed(7) for _ in range(2)]
    assert torch.equal(find_range(G, 4, generator=seeds[0]), find_range(G, 4, generator=seeds[1]))
    Q = find_range(G, 4, power=0)
    assert torch.equal(refresh(G, Q, fresh=3), refresh(G, Q, fresh=3))


@pytest.mark.parametrize("drift", [0.03, 0.1])
def test_refresh_follows_a_drifting_power_law_gradient_within_a_thousandth_of_the_optimum(drift, generator):
    rank, warm = 32, []
    Q = start = None
    for G in _drifting(256, 512, 6, drift, generator):
        best = _optimal(G, rank)
        if start is None:
            start = Q = torch.linalg.svd(G, full_matrices=False).U[:, :rank]
        Q = refresh(G, Q)
        warm.append(float(captured_energy(G, Q) / best))
    assert min(warm) > 0.999
    assert warm[-1] > float(captured_energy(G, start) / best)


def test_a_cold_basis_closes_in_on_the_optimum_with_every_refresh(generator):
    shortfall = []
    Q = None
    for G in _drifting(192, 384, 10, 0.03, generator):
        Q = find_range(G, 32) if Q is None else refresh(G, Q)
        shortfall.append(1 - float(captured_energy(G, Q) / _optimal(G, 32)))
    assert shortfall[0] < 0.05
    assert shortfall[-1] < 0.002


def test_repeated_refresh_converges_to_the_leading_singular_vectors(menagerie):
    G = menagerie["power_law"]
    Q = find_range(G, 4, power=0)
    for _ in range(60):
        Q = refresh(G, Q)
    U = torch.linalg.svd(G).U[:, :4]
    torch.testing.assert_close(Q @ Q.mT, U @ U.mT, atol=1e-9, rtol=0)


def test_refresh_keeps_the_basis_when_the_gradient_is_zero(generator):
    Q = torch.linalg.qr(torch.randn(3, 20, 4, generator=generator))[0]
    G = torch.randn(3, 20, 30, generator=generator)
    G[1] = 0
    fresh = refresh(G, Q)
    assert torch.equal(fresh[1], Q[1])
    assert not torch.equal(fresh[0], Q[0])
    assert torch.equal(refresh(torch.zeros(20, 30), Q[0], fresh=4), Q[0])


def test_refresh_stays_orthonormal_when_the_gradient_has_fewer_directions_than_the_basis(generator):
    G = torch.randn(40, 2, generator=generator) @ torch.randn(2, 50, generator=generator)  # two tokens, rank 8
    Q = refresh(G, torch.linalg.qr(torch.randn(40, 8, generator=generator))[0])
    assert _orthonormal_error(Q) < 3e-6
    assert captured_energy(G, Q) > 1 - 1e-6


def test_fresh_columns_find_a_subspace_that_the_basis_does_not_see():
    G = torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.0, 9.0, 8.0], dtype=torch.float64))
    blind = torch.eye(6, dtype=torch.float64)[:, :2]
    assert captured_energy(G, refresh(G, blind)) < 0.02
    assert captured_energy(G, refresh(G, blind, fresh=3)) > 0.95 * _optimal(G, 2)


def test_a_right_basis_is_a_left_basis_of_the_transpose(generator):
    G = torch.randn(20, 30, generator=generator)
    P = torch.linalg.qr(torch.randn(30, 3, generator=generator))[0]
    torch.testing.assert_close(refresh(G.mT, P), refresh(G.mT.contiguous(), P))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_gradient_refreshes_a_float32_basis(dtype, generator):
    G = torch.randn(24, 40, generator=generator)
    Q = find_range(G, 4)
    half = refresh(G.to(dtype), Q)
    assert half.dtype == torch.float32
    assert find_range(G.to(dtype), 4).dtype == dtype
    assert captured_energy(G, half) > 0.99 * captured_energy(G, refresh(G, Q))


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e30, 1e37])
def test_refresh_does_not_depend_on_the_scale_of_the_gradient(scale, generator):
    G = torch.randn(16, 24, generator=generator, dtype=torch.float64)
    Q = find_range(G, 3, power=0).float()
    scaled = (G * scale).float()
    same = (scaled.double() / scaled.double().abs().max()).float()
    torch.testing.assert_close(refresh(scaled, Q), refresh(same, Q), atol=1e-5, rtol=0)
    torch.testing.assert_close(captured_energy(scaled, Q), captured_energy(same, Q), atol=1e-5, rtol=0)


@settings(max_examples=25, deadline=None)
@given(
    m=st.integers(1, 24),
    n=st.integers(1, 24),
    rank=st.integers(1, 24),
    fresh=st.integers(0, 6),
    seed=st.integers(0, 99),
)
def test_refresh_never_captures_less_than_before(m, n, rank, fresh, seed):
    # Subspace iteration with a positive semi-definite G Gᵀ never loses energy.
    rank = min(m, n, rank)
    generator = torch.Generator().manual_seed(seed)
    G = torch.randn(m, n, generator=generator, dtype=torch.float64)
    Q = torch.linalg.qr(torch.randn(m, rank, generator=generator, dtype=torch.float64))[0]
    new = refresh(G, Q, fresh=fresh)
    assert _orthonormal_error(new) < 1e-12
    assert captured_energy(G, new) >= captured_energy(G, Q) - 1e-12
    assert captured_energy(G, new) <= _optimal(G, rank) + 1e-12


def test_captured_energy_is_the_share_of_the_squared_norm(matrix):
    U, S, _ = torch.linalg.svd(matrix, full_matrices=False)
    energy = S.square().cumsum(0) / S.square().sum() if matrix.any() else torch.ones_like(S)
    for r in range(1, len(S) + 1):
        torch.testing.assert_close(captured_energy(matrix, U[:, :r]), energy[r - 1])


def test_bases_carry_no_autograd_graph(generator):
    G = torch.randn(10, 12, generator=generator, requires_grad=True)
    assert not refresh(G, find_range(G, 2)).requires_grad


def test_subspace_errors_name_the_argument_and_the_remedy(generator):
    G = torch.randn(6, 8, generator=generator)
    with pytest.raises(ValueError, match=r"Q of shape \(8, 2\).*pass G.mT"):
        refresh(G, torch.eye(8)[:, :2])
    with pytest.raises(ValueError, match="rank must be from 1 to 6"):
        find_range(G, 7)
    G[2, 3] = float("inf")
    for call in (lambda: refresh(G, torch.eye(6)[:, :2]), lambda: find_range(G, 2)):
        with pytest.raises(ValueError, match=r"G of shape .* 1 entries that are NaN or infinite"):
            call()


class _HostReads(TorchDispatchMode):
    """Counts the operations that wait for a device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._schema.name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("fresh", [0, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_refresh_reads_the_device_once(dtype, fresh, generator):
    G = torch.randn(3, 24, 40, generator=generator).to(dtype)
    Q = find_range(G, 4).float()
    for gradient in (G, 0 * G):
        with _HostReads() as reads:
            refresh(gradient, Q, fresh=fresh)
        assert reads.count == 1


def test_a_gradient_with_nan_in_one_matrix_of_a_batch_is_refused(generator):
    G = torch.randn(3, 8, 9, generator=generator)
    Q = find_range(G, 2)
    G[1, 2, 3] = float("nan")
    for fresh in (0, 3):
        with pytest.raises(ValueError, match=r"G of shape .* 1 entries that are NaN"):
            refresh(G, Q, fresh=fresh)
    with pytest.raises(ValueError, match=r"Q of shape .* NaN"):
        refresh(torch.nan_to_num(G), Q * float("nan"))
