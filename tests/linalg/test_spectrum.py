"""The scalars of a spectrum: a float64 reference over the menagerie, and what holds for every spectrum."""

from itertools import pairwise

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eckart.linalg import (
    effective_rank,
    energy_rank,
    nuclear_ratio,
    numerical_rank,
    participation_ratio,
    stable_rank,
)

SCALARS = [stable_rank, effective_rank, participation_ratio, nuclear_ratio, energy_rank]
spectra = st.lists(st.floats(0, 1e3), min_size=1, max_size=12).map(
    lambda values: torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
)


def test_scalars_follow_their_formulas_over_the_menagerie(matrix: Tensor) -> None:
    S = torch.linalg.svdvals(matrix)
    if float(S[0]) == 0:
        pytest.skip("the zero matrix has its own test")
    energies = S.square()
    for power in (1, 2):
        entropy = scipy.stats.entropy(S.pow(power).numpy())  # normalises its argument
        torch.testing.assert_close(effective_rank(S, power), torch.tensor(entropy, dtype=torch.float64).exp())
    torch.testing.assert_close(stable_rank(S), matrix.square().sum() / torch.linalg.matrix_norm(matrix, 2) ** 2)
    gram = matrix.T @ matrix
    torch.testing.assert_close(participation_ratio(S), gram.trace() ** 2 / gram.square().sum())
    torch.testing.assert_close(nuclear_ratio(S), S.sum() ** 2 / matrix.square().sum())
    reached = torch.cumsum(energies, 0) / energies.sum()
    assert int(energy_rank(S, 0.9)) == int((reached < 0.9 - 1e-12).sum()) + 1


def test_numerical_rank_agrees_with_torch(matrix: Tensor) -> None:
    S = torch.linalg.svdvals(matrix)
    assert int(numerical_rank(S, tuple(matrix.shape))) == int(torch.linalg.matrix_rank(matrix))


@pytest.mark.parametrize("scalar", SCALARS)
def test_equal_values_count_fully_and_a_zero_matrix_counts_nothing(scalar) -> None:
    assert float(scalar(torch.full((7,), 0.3, dtype=torch.float64))) == pytest.approx(7)
    assert float(scalar(torch.zeros(7))) == 0
    assert float(scalar(torch.tensor([4.0, 0.0, 0.0]))) == 1
    assert int(numerical_rank(torch.zeros(7), (7, 9))) == 0


@settings(max_examples=50, deadline=None)
@given(spectra, st.floats(1e-200, 1e150))
def test_ranks_are_ordered_and_do_not_change_with_scale(S: Tensor, scale: float) -> None:
    rank = float((S > 0).sum())
    order = [stable_rank(S), participation_ratio(S), effective_rank(S), effective_rank(S, 1), torch.tensor(rank)]
    assert float(order[0]) >= min(1, rank) * (1 - 1e-12)
    for smaller, larger in pairwise(order[1:]):
        assert float(smaller) <= float(larger) * (1 + 1e-9)
    assert float(nuclear_ratio(S)) <= rank * (1 + 1e-9)
    if rank and float(S[0]) > 1e-3:
        for scalar in (stable_rank, effective_rank, participation_ratio, nuclear_ratio):
            torch.testing.assert_close(scalar(S * scale), scalar(S), rtol=1e-7, atol=0)


@settings(max_examples=50, deadline=None)
@given(spectra, st.floats(0, 1))
def test_energy_rank_is_the_smallest_that_reaches_the_fraction(S: Tensor, fraction: float) -> None:
    energies = (S / S[0] if float(S[0]) else S).square()  # 1e-200 squared would be 0
    total, r = float(energies.sum()), int(energy_rank(S, fraction))
    assert float(energies[r:].sum()) <= (1 - fraction) * total * (1 + 1e-8)
    if r > 0:
        assert float(energies[r - 1 :].sum()) > (1 - fraction) * total


def test_energy_rank_resolves_ties_as_exact_arithmetic_does() -> None:
    S = torch.ones(10)
    assert [int(energy_rank(S, tenth / 10)) for tenth in range(11)] == list(range(11))


def test_a_batch_gives_what_each_spectrum_gives(generator: torch.Generator) -> None:
    S = torch.linalg.svdvals(torch.randn(2, 3, 8, 5, generator=generator))
    for scalar in SCALARS:
        each = torch.stack([torch.stack([scalar(row) for row in rows]) for rows in S])
        torch.testing.assert_close(scalar(S), each)
    assert numerical_rank(S, (8, 5)).tolist() == [[5] * 3] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_half_precision_spectra_give_float32_numbers(dtype: torch.dtype) -> None:
    S = torch.tensor([2.0, 1.0, 0.5], dtype=dtype)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert effective_rank(S).dtype == wanted
    torch.testing.assert_close(stable_rank(S), torch.tensor(1.3125, dtype=wanted))


def test_numerical_rank_takes_the_rounding_of_the_dtype_that_the_matrix_had(generator: torch.Generator) -> None:
    factors = torch.randn(64, 3, generator=generator), torch.randn(3, 64, generator=generator)
    rounded = (factors[0] @ factors[1]).bfloat16().double()
    S = torch.linalg.svdvals(rounded)
    assert int(numerical_rank(S, (64, 64))) == 64
    assert int(numerical_rank(S, (64, 64), eps=torch.finfo(torch.bfloat16).eps)) == 3


@pytest.mark.parametrize(
    ("S", "message"),
    [
        (torch.tensor([1.0, float("nan")]), "NaN or infinite"),
        (torch.tensor([1.0, 2.0]), "descending"),
        (torch.tensor([1.0, -2.0]), "negative"),
        (torch.zeros(0), "shape"),
        (torch.tensor(1.0), "shape"),
    ],
)
def test_what_is_no_spectrum_is_named(S: Tensor, message: str) -> None:
    for scalar in SCALARS:
        with pytest.raises(ValueError, match=message):
            scalar(S)


def test_arguments_out_of_range_are_named() -> None:
    S = torch.tensor([2.0, 1.0])
    with pytest.raises(ValueError, match="power"):
        effective_rank(S, 0)
    with pytest.raises(ValueError, match="fraction"):
        energy_rank(S, 1.5)
    with pytest.raises(ValueError, match="eps"):
        numerical_rank(S, (2, 2), eps=-1)
    with pytest.raises(ValueError, match="at most 1 singular values of the 1×5"):
        numerical_rank(S, (1, 5))
    with pytest.raises(TypeError, match="list"):
        stable_rank([2.0, 1.0])  # type: ignore[arg-type]
