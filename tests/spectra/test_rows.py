"""Rows of statistics: exact in full mode, true intervals in fast mode."""

import math

import pytest
import torch

from eckart.spectra.entry import Entry, complete_entry
from eckart.spectra.rows import row
from eckart.spectra.spectrum import entry_of

INTERVALS = (
    "stable_rank",
    "effective_rank",
    "effective_rank_fraction",
    "participation_ratio",
    "nuclear_ratio",
    "energy_rank_90",
    "energy_rank_99",
)


def _spectrum(decay: float, count: int = 64) -> torch.Tensor:
    return torch.arange(1, count + 1, dtype=torch.float64) ** -decay


def test_row_of_a_known_spectrum_has_the_closed_form_numbers() -> None:
    r = row(complete_entry("layers.2.mlp.up", "weights", (4, 6), torch.tensor([2.0, 2.0, 0.0, 0.0]), 1e-7))
    assert (r["layer"], r["kind"], r["m"], r["n"]) == (2, "mlp.up", 4, 6)
    assert r["norm"] == pytest.approx(math.sqrt(8))
    assert r["stable_rank"] == pytest.approx(2)
    assert r["effective_rank"] == pytest.approx(2)
    assert r["effective_rank_fraction"] == pytest.approx(0.5)
    assert r["participation_ratio"] == pytest.approx(2)
    assert r["nuclear_ratio"] == pytest.approx(2)
    assert (r["energy_rank_90"], r["energy_rank_99"], r["numerical_rank"]) == (2, 2, 2)


@pytest.mark.parametrize("decay", [0.0, 0.3, 1.0, 3.0])
def test_intervals_hold_the_full_numbers(decay: float) -> None:
    S = _spectrum(decay)
    full = row(complete_entry("a", "weights", (64, 100), S, 1e-12))
    fast = row(Entry("a", "weights", (64, 100), S[:16], float(S.square().sum()), 1e-12))
    for key in INTERVALS:
        low, high = fast[key] if isinstance(fast[key], tuple) else (fast[key], fast[key])
        assert low * (1 - 1e-9) <= full[key] <= high * (1 + 1e-9), key
    assert [fast[key] for key in ("numerical_rank", "noise_edge", "outliers", "alpha")] == [None] * 4


def test_an_energy_rank_reached_within_the_known_values_is_a_whole_number() -> None:
    S = _spectrum(3.0)
    fast = row(Entry("a", "weights", (64, 64), S[:16], float(S.square().sum()), 1e-12))
    assert fast["energy_rank_99"] == int((S.square().cumsum(0) < 0.99 * S.square().sum()).sum()) + 1


def test_a_zero_matrix_gives_zeros_and_no_nan() -> None:
    for entry in (
        complete_entry("a", "weights", (5, 7), torch.zeros(5), 0.0),
        Entry("a", "weights", (50, 70), torch.zeros(16, dtype=torch.float64), 0.0, 0.0),
    ):
        r = row(entry)
        numbers = [x for v in r.values() for x in (v if isinstance(v, tuple) else (v,)) if isinstance(x, float)]
        assert all(math.isfinite(x) for x in numbers)
        assert r["stable_rank"] in (0, (0, 0))
        assert r["alpha"] is None


def test_rounding_of_the_number_format_is_no_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(200, 5, generator=generator) @ torch.randn(5, 100, generator=generator)
    for dtype in (torch.float32, torch.bfloat16):
        r = row(entry_of(W.to(dtype), name="a", of="weights", mode="full"))
        assert r["numerical_rank"] == 5
        assert r["outliers"] == 5
        assert r["alpha"] is None  # five values are too few to fit


def test_intervals_hold_though_the_largest_values_are_only_nearly_known() -> None:
    Q, _ = torch.linalg.qr(torch.randn(600, 600, generator=torch.Generator().manual_seed(0)))
    for S in (
        torch.cat([torch.ones(17), torch.zeros(583)]),
        torch.cat([torch.linspace(1, 0.9, 300), torch.zeros(300)]),
    ):
        W = (Q * S) @ Q.T
        full = row(entry_of(W, name="a", of="weights", mode="full"))
        fast = row(entry_of(W, name="a", of="weights", mode="fast"))
        for key in INTERVALS:
            low, high = fast[key] if isinstance(fast[key], tuple) else (fast[key], fast[key])
            assert low <= full[key] <= high, key
