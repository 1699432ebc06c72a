"""principal_angles and overlap: against scipy and the definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eckart.linalg.angles import overlap, principal_angles


@settings(max_examples=25, deadline=None)
@given(m=st.integers(2, 20), a=st.integers(1, 20), b=st.integers(1, 20), seed=st.integers(0, 99))
def test_principal_angles_agree_with_scipy(m, a, b, seed):
    scipy_linalg = pytest.importorskip("scipy.linalg")
    a, b = min(a, m), min(b, m)
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(m, a, generator=generator, dtype=torch.float64)
    B = torch.randn(m, b, generator=generator, dtype=torch.float64)
    expected = torch.from_numpy(scipy_linalg.subspace_angles(A.numpy(), B.numpy())).flip(0)
    # scipy's angle of two subspaces that meet comes out as √eps; ours must be as near 0 as eps.
    torch.testing.assert_close(principal_angles(A, B), expected, atol=2e-7, rtol=0)
    meeting = max(0, a + b - m)
    assert (principal_angles(A, B)[:meeting] < 1e-12).all()


@pytest.mark.parametrize("angle", [1e-12, 1e-7, 1e-3, 0.5, 1.5, math.pi / 2 - 1e-9, math.pi / 2])
def test_principal_angles_are_accurate_near_zero_and_near_a_right_angle(angle):
    A = torch.tensor([[1.0], [0.0], [0.0]], dtype=torch.float64)
    B = torch.tensor([[math.cos(angle)], [math.sin(angle)], [0.0]], dtype=torch.float64)
    assert principal_angles(A, B).item() == pytest.approx(angle, rel=1e-10)


def test_principal_angles_do_not_depend_on_the_bases(generator):
    A = torch.randn(15, 4, generator=generator, dtype=torch.float64)
    B = torch.randn(15, 3, generator=generator, dtype=torch.float64)
    mixed = A @ torch.randn(4, 4, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(principal_angles(mixed, 5 * B), principal_angles(A, B), atol=1e-10, rtol=0)
    torch.testing.assert_close(principal_angles(B, A), principal_angles(A, B))
    assert principal_angles(A, mixed).max() < 1e-12
    assert bool((principal_angles(A, B).diff() >= 0).all())


def test_overlap_is_the_mean_squared_cosine_of_the_principal_angles(generator):
    A = torch.linalg.qr(torch.randn(2, 12, 5, generator=generator, dtype=torch.float64))[0]
    B = torch.linalg.qr(torch.randn(2, 12, 4, generator=generator, dtype=torch.float64))[0]
    for i, j in ((5, 4), (2, 4), (3, 1)):
        expected = principal_angles(A[..., :i], B[..., :j]).cos().square().mean(-1)
        torch.testing.assert_close(overlap(A, B, i, j), expected)
    torch.testing.assert_close(overlap(A, B), overlap(A, B, 5, 4))
    torch.testing.assert_close(overlap(A, A[..., :2]), torch.ones(2, dtype=torch.float64))


def test_comparing_bases_of_different_spaces_is_a_named_error():
    with pytest.raises(ValueError, match=r"A \(3, 1\) and B \(4, 1\)"):
        principal_angles(torch.ones(3, 1), torch.ones(4, 1))
    with pytest.raises(ValueError, match="i must be from 1 to 2"):
        overlap(torch.eye(3)[:, :2], torch.eye(3)[:, :2], 3)
