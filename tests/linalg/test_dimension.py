"""TwoNN: manifolds of known dimension, a reference with scipy's neighbours, and clouds that break a naive version."""

import numpy as np
import pytest
import scipy.spatial
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eckart.linalg import intrinsic_dimension


def _cube(dimension: int, ambient: int, count: int, generator: torch.Generator) -> Tensor:
    """Points of a unit cube of this dimension, turned into a larger space."""
    turn = torch.linalg.qr(torch.randn(ambient, dimension, dtype=torch.float64, generator=generator))[0]
    return torch.rand(count, dimension, dtype=torch.float64, generator=generator) @ turn.T


@pytest.mark.parametrize(("dimension", "tolerance"), [(1, 0.1), (2, 0.15), (5, 0.5)])
def test_the_dimension_of_a_cube_does_not_depend_on_the_space_around_it(dimension: int, tolerance: float) -> None:
    X = _cube(dimension, 40, 3000, torch.Generator().manual_seed(3))
    assert float(intrinsic_dimension(X)) == pytest.approx(dimension, abs=tolerance)


@pytest.mark.parametrize("trim", [0.0, 0.1])
def test_the_estimate_agrees_with_scipy_neighbours_and_the_paper_fit(trim: float, generator: torch.Generator) -> None:
    X = _cube(3, 10, 1500, generator) + 0.02 * torch.randn(1500, 10, dtype=torch.float64, generator=generator)
    distances = scipy.spatial.cKDTree(X.numpy()).query(X.numpy(), k=3)[0]
    logs = np.sort(np.log(distances[:, 2] / distances[:, 1]))
    kept = len(logs) - int(trim * len(logs))
    likelihood = kept / (logs[:kept].sum() + (len(logs) - kept) * logs[kept - 1])
    assert float(intrinsic_dimension(X, trim=trim)) == pytest.approx(likelihood, rel=1e-9)
    if trim:  # Facco et al.'s least squares through the origin, −ln(1 − F) = d·ln μ
        y = -np.log(1 - np.arange(kept) / len(logs))
        fitted = (y @ logs[:kept]) / (logs[:kept] @ logs[:kept])
        assert float(intrinsic_dimension(X, trim=trim)) == pytest.approx(fitted, rel=0.05)


def test_repeated_rows_and_a_far_origin_change_nothing(generator: torch.Generator) -> None:
    X = _cube(2, 6, 800, generator)
    plain = float(intrinsic_dimension(X))
    assert float(intrinsic_dimension(torch.cat((X, X[:300])))) == pytest.approx(plain, rel=1e-9)
    assert float(intrinsic_dimension(1e6 + X)) == pytest.approx(plain, rel=1e-3)
    assert float(intrinsic_dimension(1e-150 * X)) == pytest.approx(plain, rel=1e-9)


def test_chunks_do_not_change_the_estimate(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    X = _cube(2, 5, 500, generator)
    whole = intrinsic_dimension(X)
    monkeypatch.setattr("eckart.linalg.dimension.CHUNK", 7 * 500)
    torch.testing.assert_close(intrinsic_dimension(X), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_points_give_a_float32_estimate(dtype: torch.dtype, generator: torch.Generator) -> None:
    X = torch.randn(600, 3, generator=generator).to(dtype)
    estimate = intrinsic_dimension(X)
    assert estimate.dtype == torch.float32
    assert float(estimate) == pytest.approx(3, abs=0.6)


def test_degenerate_clouds_have_an_answer() -> None:
    assert float(intrinsic_dimension(torch.zeros(50, 4))) == 0
    assert float(intrinsic_dimension(torch.eye(2))) == 0
    lattice = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0))
    assert float(intrinsic_dimension(lattice)) == float("inf")


def test_what_is_no_cloud_is_refused() -> None:
    with pytest.raises(ValueError, match="one cloud"):
        intrinsic_dimension(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="trim"):
        intrinsic_dimension(torch.zeros(3, 4), trim=1.0)
    with pytest.raises(ValueError, match="NaN"):
        intrinsic_dimension(torch.full((3, 4), float("nan")))


@settings(deadline=None, max_examples=25)
@given(
    count=st.integers(3, 60),
    ambient=st.integers(1, 8),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 99),
)
def test_the_estimate_does_not_depend_on_scale_order_or_rotation(
    count: int, ambient: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(count, ambient, dtype=torch.float64, generator=generator)
    plain = float(intrinsic_dimension(X))
    assert plain > 0
    turn = torch.linalg.qr(torch.randn(ambient, ambient, dtype=torch.float64, generator=generator))[0]
    shuffled = X[torch.randperm(count, generator=generator)]
    assert float(intrinsic_dimension(scale * shuffled @ turn)) == pytest.approx(plain, rel=1e-6)
