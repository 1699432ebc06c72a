"""The intervals of fast mode: no spectrum lies outside them, and an extreme spectrum attains each end."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eckart.linalg import (
    effective_rank,
    effective_rank_bounds,
    energy_rank,
    energy_rank_bounds,
    nuclear_ratio,
    nuclear_ratio_bounds,
    participation_ratio,
    participation_ratio_bounds,
    top_singular_values,
)

ROUNDING = 1e-5  # an error of 1e-16 in the tail's energy E − ΣS² is one of 40·√1e-16 in the sum of 40 values

PAIRS = {
    "nuclear": (nuclear_ratio_bounds, nuclear_ratio),
    "participation": (participation_ratio_bounds, participation_ratio),
    "effective": (effective_rank_bounds, effective_rank),
    "energy 0": (lambda *known, **how: energy_rank_bounds(*known, 0.0, **how), lambda S: energy_rank(S, 0.0)),
    "energy 0.9": (lambda *known, **how: energy_rank_bounds(*known, 0.9, **how), lambda S: energy_rank(S, 0.9)),
    "energy 0.99": (energy_rank_bounds, energy_rank),
    "energy 1": (lambda *known, **how: energy_rank_bounds(*known, 1.0, **how), lambda S: energy_rank(S, 1.0)),
}


@st.composite
def spectra(draw: st.DrawFn) -> Tensor:
    """Descending spectra of many characters: flat, steep, with zeros, with repeats, with one small value."""
    count = draw(st.integers(1, 40))
    values = draw(st.lists(st.floats(1e-3, 1), min_size=count, max_size=count))
    S = torch.tensor(sorted(values, reverse=True), dtype=torch.float64) ** draw(st.sampled_from([0.0, 0.2, 1.0, 4.0]))
    S[draw(st.integers(1, count)) :] *= draw(st.sampled_from([0.0, 1e-2, 1.0]))
    return S * draw(st.sampled_from([1.0, 1e-6, 1e5]))


def _energy(S: Tensor) -> Tensor:
    return S.square().sum(-1)


@pytest.mark.parametrize("name", PAIRS)
@settings(max_examples=60, deadline=None)
@given(spectra(), st.data())
def test_no_spectrum_lies_outside_the_interval(name: str, S: Tensor, data: st.DataObject) -> None:
    bounds, statistic = PAIRS[name]
    k = data.draw(st.integers(1, len(S)))
    low, high = bounds(S[:k], _energy(S), len(S))
    value = float(statistic(S))
    assert float(low) <= value * (1 + ROUNDING)
    assert value <= float(high) * (1 + ROUNDING)


@pytest.mark.parametrize("name", PAIRS)
@settings(max_examples=40, deadline=None)
@given(
    top=st.lists(st.floats(0.1, 1), min_size=1, max_size=5),
    rest=st.integers(1, 60),
    filled=st.floats(0, 1),
)
def test_an_extreme_spectrum_attains_each_end(name: str, top: list[float], rest: int, filled: float) -> None:
    bounds, statistic = PAIRS[name]
    S_top = torch.tensor(sorted(top, reverse=True), dtype=torch.float64)
    cap = float(S_top[-1]) ** 2
    tail = filled * rest * cap
    full = min(int(tail / cap), rest)
    packed = [cap] * full + [max(tail - full * cap, 0.0)] * (full < rest) + [0.0] * (rest - full - 1)
    flat = [tail / rest] * rest
    ends = [
        statistic(torch.cat((S_top, torch.tensor(energies, dtype=torch.float64).clamp_max(cap).sqrt())))
        for energies in (packed, flat)
    ]
    got = bounds(S_top, S_top.square().sum() + tail, len(S_top) + rest)
    if name == "energy 1" and min(filled, 1 - filled) * rest < 1e-6:
        return  # the whole energy is reached at the last nonzero value, however small: rounding of E decides
    torch.testing.assert_close(got[0].double(), ends[0].double(), rtol=ROUNDING, atol=0)
    torch.testing.assert_close(got[1].double(), ends[1].double(), rtol=ROUNDING, atol=0)


def test_a_whole_spectrum_leaves_no_doubt(matrix: Tensor) -> None:
    S = torch.linalg.svdvals(matrix)
    for name, (bounds, statistic) in PAIRS.items():
        low, high = bounds(S, _energy(S), len(S))
        assert float(low) == float(high), name
        assert float(low) == pytest.approx(float(statistic(S)), rel=1e-9), name


def test_sixteen_values_of_a_decaying_spectrum_leave_a_narrow_interval() -> None:
    S = torch.arange(1, 577, dtype=torch.float64) ** -1.0
    low, high = effective_rank_bounds(S[:16], _energy(S), 576)
    assert float(high) / float(low) < 1.3
    low, high = energy_rank_bounds(S[:16], _energy(S), 576, 0.9)
    assert (int(low), int(high)) == (6, 6)


def test_batches_and_float32_values_give_what_each_gives(generator: torch.Generator) -> None:
    S = torch.linalg.svdvals(torch.randn(2, 3, 9, 7, generator=generator))
    for bounds, _ in PAIRS.values():
        low, high = bounds(S[..., :2], _energy(S), 7)
        one = bounds(S[1, 2, :2], _energy(S[1, 2]), 7)
        assert low.shape == high.shape == (2, 3)
        assert (float(low[1, 2]), float(high[1, 2])) == pytest.approx((float(one[0]), float(one[1])))
        assert low.dtype in (torch.float32, torch.int64)


def test_approximate_values_may_contradict_the_energy_a_little_but_not_more() -> None:
    exact = torch.ones(10, dtype=torch.float64)
    low, high = nuclear_ratio_bounds(exact[:4] * 0.995, 10.0, 10)  # ten values of 0.995 have less energy
    assert float(low) == float(high) == pytest.approx(10)
    low, high = nuclear_ratio_bounds(exact[:4] * 1.005, 4.0, 10)  # four values of 1.005 have more
    assert float(low) == float(high) == pytest.approx(4)
    for energy in (3.0, 20.0):
        with pytest.raises(ValueError, match="energy must be"):
            nuclear_ratio_bounds(exact[:4], energy, 10)


@pytest.mark.parametrize("name", PAIRS)
@settings(max_examples=60, deadline=None)
@given(spectra(), st.floats(1e-4, 0.3), st.data())
def test_no_spectrum_lies_outside_the_interval_of_values_that_are_too_small(
    name: str, S: Tensor, accuracy: float, data: st.DataObject
) -> None:
    bounds, statistic = PAIRS[name]
    k = data.draw(st.integers(1, len(S)))
    short = 1 - accuracy * torch.tensor(
        data.draw(st.lists(st.floats(0, 1), min_size=k, max_size=k)), dtype=torch.float64
    )
    known = (S[:k] * short).sort(descending=True).values
    E = _energy(S)
    if float(E - _energy(known)) > 0.03 * float(_energy(known)) + float((len(S) - k) * known[-1] ** 2):
        return  # contradicts the energy by more than is let pass
    low, high = bounds(known, E * (1 + data.draw(st.sampled_from([-5e-7, 0, 5e-7]))), len(S), accuracy=accuracy)
    value = float(statistic(S))
    assert float(low) <= value * (1 + 1e-12)
    assert value <= float(high) * (1 + 1e-12)
    narrow = bounds(S[:k], E, len(S))
    for some in (accuracy, 0.5 * accuracy):
        wide = bounds(S[:k], E, len(S), accuracy=some)
        assert float(wide[0]) <= float(narrow[0]) * (1 + 1e-12)
        assert float(narrow[1]) <= float(wide[1]) * (1 + 1e-12)


def _of_spectrum(size: int, S: Tensor) -> Tensor:
    sides = torch.Generator().manual_seed(1)
    U, V = (torch.linalg.qr(torch.randn(size, len(S), dtype=torch.float64, generator=sides)).Q for _ in range(2))
    return ((U * S) @ V.mT).float()


@pytest.mark.parametrize(
    "S",
    [
        torch.ones(17, dtype=torch.float64),
        torch.linspace(1, 0.9, 300, dtype=torch.float64),
        1 + 0.01 * torch.linspace(-2.5, 2.5, 400, dtype=torch.float64).flip(0),
        torch.arange(1.0, 401, dtype=torch.float64) ** -0.8,
        torch.ones(5, dtype=torch.float64),
    ],
    ids=["17 equal", "300 in 1 … 0.9", "400 nearly equal", "power law", "5 equal"],
)
def test_the_interval_of_a_fast_spectrum_surely_holds_the_truth(S: Tensor) -> None:
    W = _of_spectrum(400, S)
    truth, (top, energy) = torch.linalg.svdvals(W.double()), top_singular_values(W)
    for name, (bounds, statistic) in PAIRS.items():
        if name == "energy 1":
            continue  # counts the rounding of float32 as rank
        low, high = bounds(top, energy, 400, accuracy=1e-2)
        assert float(low) <= float(statistic(truth)) <= float(high), name
    assert top.sum() <= truth[:16].sum() * (1 + 1e-6)
    assert (top >= 0.99 * truth[:16] - 1e-6).all()


def test_arguments_out_of_range_are_named() -> None:
    S = torch.tensor([2.0, 1.0])
    with pytest.raises(ValueError, match="count"):
        nuclear_ratio_bounds(S, 5.0, 1)
    for accuracy in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="accuracy"):
            effective_rank_bounds(S, 5.0, 2, accuracy=accuracy)
    with pytest.raises(ValueError, match="fraction"):
        energy_rank_bounds(S, 5.0, 2, -0.1)
    with pytest.raises(ValueError, match="one entry per spectrum"):
        nuclear_ratio_bounds(S, torch.ones(3), 2)
