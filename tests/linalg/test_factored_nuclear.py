"""The nuclear norm of a product kept factored: its value and its slope are those of the dense matrix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eckart.linalg import balance, nuclear_norm, product_nuclear_norm


def _pair(m: int, r: int, n: int, seed: int, *batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    B = torch.randn(*batch, m, r, dtype=torch.float64, generator=generator).requires_grad_()
    return B, torch.randn(*batch, r, n, dtype=torch.float64, generator=generator).requires_grad_()


@settings(max_examples=25)
@given(m=st.integers(1, 8), r=st.integers(1, 6), n=st.integers(1, 8), seed=st.integers(0, 99))
def test_value_and_slopes_are_those_of_the_dense_product(m: int, r: int, n: int, seed: int) -> None:
    B, A = _pair(m, r, n, seed)
    norm = product_nuclear_norm(B, A)
    torch.testing.assert_close(norm, torch.linalg.svdvals(B @ A).sum())
    U, _, Vh = torch.linalg.svd((B @ A).detach(), full_matrices=False)
    rank = min(m, r, n)
    slope = U[:, :rank] @ Vh[:rank]
    found = torch.autograd.grad(norm, (B, A))
    torch.testing.assert_close(found, (slope @ A.detach().mT, B.detach().mT @ slope), rtol=1e-6, atol=1e-8)


def test_autograd_agrees_with_finite_differences_in_a_batch() -> None:
    assert torch.autograd.gradcheck(product_nuclear_norm, _pair(5, 3, 4, 0, 2))


def test_repeated_and_zero_values_have_finite_slopes() -> None:
    eye, zero = torch.eye(4, requires_grad=True), torch.zeros(4, 4, requires_grad=True)
    torch.testing.assert_close(torch.autograd.grad(product_nuclear_norm(eye, eye.detach()), eye)[0], torch.eye(4))
    assert not any(slope.any() for slope in torch.autograd.grad(product_nuclear_norm(zero, eye), (zero, eye)))


def test_every_matrix_of_the_menagerie_has_its_norm_and_balance_attains_the_bound(matrix: Tensor) -> None:
    eye = torch.eye(matrix.shape[1], dtype=torch.float64)
    norm = product_nuclear_norm(matrix, eye)
    torch.testing.assert_close(norm, nuclear_norm(matrix))
    assert norm <= (matrix.square().sum() + eye.square().sum()) / 2 + 1e-9
    B, A = balance(matrix, eye)
    torch.testing.assert_close((B.square().sum() + A.square().sum()) / 2, norm)


def test_bf16_factors_get_bf16_slopes() -> None:
    B, A = (W.detach().bfloat16().requires_grad_() for W in _pair(6, 2, 5, 3))
    norm = product_nuclear_norm(B, A)
    norm.backward()
    assert norm.dtype == torch.float64
    assert B.grad is not None
    assert B.grad.dtype == torch.bfloat16
    torch.testing.assert_close(norm, nuclear_norm(B.detach().double() @ A.detach().double()))


def test_factors_that_do_not_multiply_are_an_error() -> None:
    with pytest.raises(ValueError, match="do not multiply"):
        product_nuclear_norm(torch.ones(3, 2), torch.ones(3, 2))
