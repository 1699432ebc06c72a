"""The smallest singular triples against LAPACK's whole SVD."""

import pytest
import torch

from eckart.linalg import smallest_svd


@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (9, 9), (3, 12, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_last_triples_are_those_of_the_whole_svd(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    u, s, vh = smallest_svd(W, 3)
    assert (u.dtype, s.dtype, vh.dtype) == (dtype,) * 3
    tolerance = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 1e-10, "rtol": 1e-9}
    torch.testing.assert_close(s.double(), S[..., -3:], **tolerance)
    expected = U[..., -3:] * S[..., None, -3:] @ Vh[..., -3:, :]
    torch.testing.assert_close((u * s.unsqueeze(-2) @ vh).double(), expected, **tolerance)


@pytest.mark.parametrize("W", [torch.zeros(6, 4), torch.ones(4, 6), torch.eye(5).bfloat16()])
def test_bases_are_orthonormal_where_the_weight_has_no_such_rank(W: torch.Tensor) -> None:
    U, S, Vh = (part.float() for part in smallest_svd(W, 3))
    torch.testing.assert_close(U.mT @ U, torch.eye(3), atol=1e-2, rtol=0)
    torch.testing.assert_close(Vh @ Vh.mT, torch.eye(3), atol=1e-2, rtol=0)
    assert (S.diff() <= 0).all()


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="rank must be from 1 to 3"):
        smallest_svd(torch.ones(3, 4), 4)
    with pytest.raises(ValueError, match="NaN or infinite"):
        smallest_svd(torch.full((3, 4), float("nan")), 1)
