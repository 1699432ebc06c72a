"""The singular values that come with the factors are those of the weighted matrix, in every metric."""

import pytest
import torch
from torch import Tensor

from eckart.linalg import weighted_singular_values, weighted_svd
from eckart.linalg.covariance import psd_root


def _covariance(n: int, kind: str) -> Tensor | None:
    X = torch.randn(2 * n, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    return {"none": None, "full": X.T @ X, "rank one": X[:1].T @ X[:1], "zero": torch.zeros(n, n).double()}[kind]


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)])
@pytest.mark.parametrize("inputs", ["none", "full", "rank one", "zero"])
@pytest.mark.parametrize("outputs", ["none", "full", "rank one", "zero"])
def test_values_are_those_of_the_weighted_matrix(shape: tuple[int, int], inputs: str, outputs: str) -> None:
    W = torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    metrics = {"input_covariance": _covariance(shape[1], inputs), "output_covariance": _covariance(shape[0], outputs)}
    B, S, A = weighted_svd(W, min(shape), **metrics)
    exact = weighted_singular_values(W, **metrics)
    torch.testing.assert_close(S, exact, rtol=1e-6, atol=1e-6 * float(exact.max().clamp_min(1)))
    assert B.isfinite().all()
    assert A.isfinite().all()
    if "zero" in (inputs, outputs):
        assert not S.any()


def test_roots_of_a_stack_of_which_one_is_singular() -> None:
    C = torch.stack([_covariance(5, "full"), _covariance(5, "rank one")])
    L = psd_root(C)
    torch.testing.assert_close(L @ L.mT, C, rtol=1e-10, atol=1e-10)
