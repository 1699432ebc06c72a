"""Marchenko–Pastur: the law against its integral, and no outliers in pure noise of any aspect ratio."""

import math

import pytest
import scipy.integrate
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eckart.linalg import count_outliers, marchenko_pastur_edge, marchenko_pastur_median, outlier_threshold

SHAPES = [(30, 30), (30, 105), (30, 1500), (105, 30), (120, 120), (100, 350), (350, 100), (100, 1000), (60, 3000)]


@pytest.mark.parametrize("beta", [1.0, 0.999, 0.7, 1 / 3.5, 0.02, 1e-5])
def test_half_of_the_law_lies_below_its_median(beta: float) -> None:
    a, b = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2

    def density(root: float) -> float:  # of √x, where the divergence at β = 1 is gone
        x = root**2
        return math.sqrt(max((b - x) * (x - a), 0)) / (math.pi * beta * root)

    below = scipy.integrate.quad(density, math.sqrt(a) or 1e-12, math.sqrt(marchenko_pastur_median(beta)), limit=200)
    assert below[0] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_pure_noise_has_no_outliers_and_its_variance_is_found(shape: tuple[int, int]) -> None:
    draws, scale = (60 if min(shape) * max(shape) < 20_000 else 20), 1e-3
    noise = torch.randn(draws, *shape, generator=torch.Generator().manual_seed(sum(shape))) * scale
    S = torch.linalg.svdvals(noise)
    edge, sigma = marchenko_pastur_edge(S, shape)
    assert float((count_outliers(S, shape) == 0).float().mean()) >= 0.95
    assert float(sigma.mean()) == pytest.approx(scale, rel=0.02)
    torch.testing.assert_close(edge, sigma * (math.sqrt(shape[0]) + math.sqrt(shape[1])))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1000, 1000), (576, 1536)])
def test_large_noise_has_no_outliers(shape: tuple[int, int]) -> None:
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    S = torch.linalg.eigvalsh(W @ W.T).flip(0).clamp_min(0).sqrt()
    assert int(count_outliers(S, shape)) == 0
    assert float(marchenko_pastur_edge(S, shape)[1]) == pytest.approx(1, abs=0.005)


@pytest.mark.parametrize("shape", SHAPES)
def test_spikes_well_above_the_edge_are_counted(shape: tuple[int, int], generator: torch.Generator) -> None:
    m, n = shape
    U = torch.linalg.qr(torch.randn(m, 3, generator=generator))[0]
    V = torch.linalg.qr(torch.randn(n, 3, generator=generator))[0]
    spikes = 1.6 * (math.sqrt(m) + math.sqrt(n)) * torch.tensor([1.0, 1.2, 1.5])
    W = torch.randn(m, n, generator=generator) + (U * spikes) @ V.T
    S = torch.linalg.svdvals(W)
    assert int(count_outliers(S, shape)) == 3
    assert float(S[3]) <= float(outlier_threshold(S, shape)) < float(S[2])


def test_the_iqr_rule_calls_noise_signal_where_the_edge_does_not(generator: torch.Generator) -> None:
    S = torch.linalg.svdvals(torch.randn(512, 1792, generator=generator))
    spread = S.quantile(0.75) - S.quantile(0.25)
    naive = spread / 1.349 * (1 + math.sqrt(512 / 1792))
    assert float(S.gt(naive).float().mean()) > 0.9
    assert int(count_outliers(S, (512, 1792))) == 0


def test_a_matrix_without_noise_has_edge_zero_and_its_rank_in_outliers(menagerie) -> None:
    W = menagerie["rank_deficient"]
    S = torch.linalg.svdvals(W)
    edge, sigma = marchenko_pastur_edge(S, tuple(W.shape))
    assert float(edge) < 1e-12
    assert float(sigma) < 1e-12
    assert int(count_outliers(S, tuple(W.shape))) == 4
    zero = torch.zeros(12, dtype=torch.float64)
    assert [float(value) for value in marchenko_pastur_edge(zero, (16, 12))] == [0, 0]
    assert int(count_outliers(zero, (16, 12))) == 0


def test_every_matrix_of_the_menagerie_has_a_finite_edge(matrix: torch.Tensor) -> None:
    S = torch.linalg.svdvals(matrix)
    shape = (matrix.shape[0], matrix.shape[1])
    assert bool(torch.isfinite(outlier_threshold(S, shape)))
    assert 0 <= int(count_outliers(S, shape)) <= len(S)


def test_a_part_of_the_spectrum_is_refused() -> None:
    with pytest.raises(ValueError, match="all 4 singular values of the 4×6 matrix, got 2"):
        marchenko_pastur_edge(torch.tensor([2.0, 1.0]), (4, 6))
    with pytest.raises(ValueError, match="beta"):
        marchenko_pastur_median(0.0)
    with pytest.raises(ValueError, match="shape"):
        count_outliers(torch.tensor([2.0, 1.0]), (2,))  # type: ignore[arg-type]


def test_rounding_of_a_stored_low_rank_matrix_is_no_outlier(generator: torch.Generator) -> None:
    W = torch.randn(200, 5, generator=generator) @ torch.randn(5, 100, generator=generator)
    S, shape, eps = torch.linalg.svdvals(W.double()), (200, 100), torch.finfo(W.dtype).eps
    assert int(count_outliers(S, shape)) > 5  # to float64's eyes the rounding of the entries is signal
    assert int(count_outliers(S, shape, eps)) == 5
    assert float(outlier_threshold(S, shape, eps)) == pytest.approx(float(S[0]) * 200 * eps)
    with pytest.raises(ValueError, match="eps"):
        count_outliers(S, shape, -1e-7)


@settings(deadline=None, max_examples=25)
@given(
    values=st.lists(st.floats(0, 1e3), min_size=1, max_size=30),
    longer=st.integers(0, 40),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_outliers_do_not_depend_on_scale_or_on_which_side_is_longer(
    values: list[float], longer: int, scale: float
) -> None:
    S = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    shape = (len(values), len(values) + longer)
    count = int(count_outliers(S, shape))
    assert 0 <= count <= len(values)
    assert int(count_outliers(S, shape[::-1])) == count
    torch.testing.assert_close(outlier_threshold(scale * S, shape), scale * outlier_threshold(S, shape))
    more = S.clone()
    more[0] += 1e4 * float(outlier_threshold(S, shape)) + 1
    if len(values) > 2:  # the median stays
        assert int(count_outliers(more, shape)) >= 1
