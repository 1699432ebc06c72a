"""The inverse root of a Gram matrix against the SVD's polar factor."""

import pytest
import torch
from torch import Tensor

from eckart.linalg import inverse_root, truncated_svd


def polar(B: Tensor) -> Tensor:
    """U Vᵀ of an SVD in float64, over the range."""
    U, S, Vh = torch.linalg.svd(B.double(), full_matrices=False)
    keep = S / S[..., :1] > 1e-12
    return (U * keep.unsqueeze(-2)) @ Vh


@pytest.mark.parametrize("name", ["tall", "square", "repeated", "single_entry", "power_law"])
def test_a_matrix_times_the_inverse_root_of_its_gram_is_its_polar_factor(
    name: str, menagerie: dict[str, Tensor]
) -> None:
    B = menagerie[name]
    torch.testing.assert_close(B @ inverse_root(B.mT @ B), polar(B), rtol=0, atol=1e-9)


def test_directions_off_the_range_stay_small(menagerie: dict[str, Tensor]) -> None:
    B = menagerie["rank_deficient"]
    values = torch.linalg.svdvals(B @ inverse_root(B.mT @ B))
    torch.testing.assert_close(values[:4], torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-7)
    assert float(values[4]) < 1e-6


def test_zero_gives_zero_and_a_batch_is_its_members(menagerie: dict[str, Tensor]) -> None:
    B = torch.stack([menagerie["square"], 0 * menagerie["square"], 1e-6 * menagerie["square"]])
    D = B @ inverse_root(B.mT @ B)
    assert torch.equal(D[1], torch.zeros_like(D[1]))
    torch.testing.assert_close(D[2], D[0], rtol=0, atol=1e-7)


@pytest.mark.parametrize("condition", [1e2, 1e4])
def test_in_float32_a_second_round_brings_small_directions_to_one(condition: float, generator: torch.Generator) -> None:
    U = truncated_svd(torch.randn(512, 128, generator=generator, dtype=torch.float64), 128)[0]
    V = truncated_svd(torch.randn(128, 128, generator=generator, dtype=torch.float64), 128)[0]
    exponents = torch.linspace(0, -torch.tensor(condition).log10().item(), 128, dtype=torch.float64)
    D = ((U * 10**exponents) @ V.mT).float()
    for _ in range(2):
        D = D @ inverse_root(D.mT @ D)
    torch.testing.assert_close(
        torch.linalg.svdvals(D.double()), torch.ones(128, dtype=torch.float64), rtol=0, atol=1e-3
    )
    assert float((D - U @ V.mT).norm() / 128**0.5) < 3e-3


def test_dtype_is_kept_and_what_is_not_square_is_refused() -> None:
    assert inverse_root(torch.eye(3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"M \(3, 2\) must be square"):
        inverse_root(torch.ones(3, 2))
