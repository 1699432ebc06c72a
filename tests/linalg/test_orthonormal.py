"""orthonormalize: orthonormal for every input, with the span of the input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eckart.linalg.orthonormal import orthonormalize


def _is_orthonormal(Q: torch.Tensor, tolerance: float) -> bool:
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype)
    return bool((Q.mT @ Q - eye).abs().max() < tolerance)


def test_orthonormalize_gives_an_orthonormal_basis_of_the_span_for_the_whole_menagerie(matrix):
    Y = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
    Q = orthonormalize(Y)
    assert Q.shape == Y.shape
    assert _is_orthonormal(Q, 1e-13)
    torch.testing.assert_close(Q @ (Q.mT @ Y), Y, atol=1e-13 * float(Y.abs().max() + 1), rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_orthonormalize_returns_the_dtype_it_was_given(dtype, generator):
    Y = torch.randn(32, 6, generator=generator).to(dtype)
    Q = orthonormalize(Y)
    assert Q.dtype == dtype
    assert _is_orthonormal(Q.float(), 30 * torch.finfo(dtype).eps)


def test_orthonormalize_survives_a_sketch_whose_columns_differ_in_length_by_1e12(generator):
    # CholeskyQR on the raw columns breaks down: their condition number squared leaves float32.
    Y = torch.linalg.qr(torch.randn(64, 8, generator=generator))[0] + 1e-3 * torch.randn(64, 8, generator=generator)
    assert _is_orthonormal(orthonormalize(Y * torch.logspace(0, -12, 8)), 3e-6)


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e37])
def test_orthonormalize_does_not_depend_on_the_scale(scale, generator):
    Y = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    scaled = (Y * scale).float()
    Q = orthonormalize(scaled)
    assert _is_orthonormal(Q, 3e-6)
    unit = scaled.double() / scaled.double().abs().max()
    assert (unit - Q.double() @ (Q.double().mT @ unit)).abs().max() < 1e-5


def test_a_batch_mixes_good_deficient_and_zero_matrices(generator):
    good = torch.randn(30, 5, generator=generator)
    deficient = good.clone()
    deficient[:, 3] = deficient[:, 0]
    Y = torch.stack((good, deficient, torch.zeros(30, 5)))
    Q = orthonormalize(Y)
    assert _is_orthonormal(Q, 3e-6)
    torch.testing.assert_close(Q[0], orthonormalize(good))  # the neighbours' fallback leaves it alone
    torch.testing.assert_close(Q[1] @ (Q[1].mT @ deficient), deficient, atol=1e-5, rtol=0)


@settings(max_examples=25, deadline=None)
@given(m=st.integers(1, 20), r=st.integers(1, 20), rank=st.integers(0, 20), seed=st.integers(0, 1000))
def test_orthonormalize_is_orthonormal_for_any_rank(m, r, rank, seed):
    r = min(m, r)
    generator = torch.Generator().manual_seed(seed)
    Y = torch.randn(m, rank, generator=generator) @ torch.randn(rank, r, generator=generator)
    Q = orthonormalize(Y)
    assert _is_orthonormal(Q, 1e-5)
    torch.testing.assert_close(Q @ (Q.mT @ Y), Y, atol=1e-4, rtol=0)


def test_orthonormalize_names_what_is_wrong():
    with pytest.raises(ValueError, match="more columns than rows"):
        orthonormalize(torch.randn(3, 4))
    with pytest.raises(ValueError, match="NaN or infinite"):
        orthonormalize(torch.tensor([[1.0], [float("nan")]]))
