"""The power-law fit against the `powerlaw` package, an exhaustive search, and samples whose exponent is known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eckart.linalg import power_law
from eckart.linalg import powerlaw as powerlaw_file


def _energies(kind: str, count: int, generator: torch.Generator) -> Tensor:  # ascending λ
    uniform = torch.rand(count, dtype=torch.float64, generator=generator)
    if kind == "pareto":
        energies = uniform.pow(-1 / 1.5)
    elif kind == "lognormal":
        energies = torch.randn(count, dtype=torch.float64, generator=generator).exp()
    elif kind == "body and tail":
        energies = torch.where(torch.arange(count) < count // 2, uniform, 1 + uniform.pow(-1 / 1.2))
    else:  # noise
        W = torch.randn(count, 2 * count, dtype=torch.float64, generator=generator)
        energies = torch.linalg.eigvalsh(W @ W.T)
    return energies.sort().values


def _exhaustive(energies: Tensor, smallest_tail: int) -> tuple[float, float, float]:
    best = (0.0, 0.0, float("inf"))
    for i in range(len(energies) - smallest_tail + 1):
        logs = (energies[i:] / energies[i]).log()
        slope = len(logs) / logs.sum()
        data = torch.arange(len(logs)) / len(logs)
        distance = float((1 - torch.exp(-slope * logs) - data).abs().max())
        if distance < best[2]:
            best = (1 + float(slope), float(energies[i]), distance)
    return best


@pytest.mark.parametrize("kind", ["pareto", "lognormal", "body and tail", "noise"])
@pytest.mark.parametrize("smallest_tail", [2, 10, 50])
def test_the_fit_is_the_one_that_an_exhaustive_search_finds(
    kind: str, smallest_tail: int, generator: torch.Generator
) -> None:
    energies = _energies(kind, 400, generator)
    fit = power_law(energies.sqrt().flip(0), smallest_tail=smallest_tail)
    assert [float(value) for value in fit] == pytest.approx(_exhaustive(energies, smallest_tail), rel=1e-6)


@pytest.mark.parametrize("kind", ["pareto", "body and tail"])
@pytest.mark.filterwarnings("ignore")
def test_the_fit_agrees_with_the_powerlaw_package(kind: str, generator: torch.Generator) -> None:
    powerlaw = pytest.importorskip("powerlaw")
    energies = _energies(kind, 300, generator)
    # The package clips alpha to 3 unless told otherwise.
    peer = powerlaw.Fit(energies.numpy(), verbose=False, parameter_ranges={"alpha": [1.01, 100]})
    fit = power_law(energies.sqrt().flip(0))
    assert [float(value) for value in fit] == pytest.approx((peer.alpha, peer.xmin, peer.D), rel=1e-4)


@pytest.mark.parametrize("alpha", [1.8, 2.5, 4.0])
def test_alpha_of_an_ideal_sample_is_recovered(alpha: float) -> None:
    quantiles = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    fit = power_law((3 * quantiles.pow(-1 / (alpha - 1))).sqrt())
    assert float(fit.alpha) == pytest.approx(alpha, rel=0.01)
    assert float(fit.xmin) >= 3
    assert float(fit.distance) < 0.002


def test_equal_values_count_together_and_zeros_to_rounding_are_left_out(generator: torch.Generator) -> None:
    energies = _energies("pareto", 200, generator)
    S = energies.sqrt().flip(0)
    padded = torch.cat((S, S[-1] * 1e-18 * torch.ones(300, dtype=torch.float64).cumsum(0).flip(0)))
    for one, other in zip(power_law(S), power_law(padded), strict=True):
        assert float(one) == float(other)
    doubled = power_law(S.repeat_interleave(2), smallest_tail=20)  # the same distribution, each value twice
    assert float(doubled.distance) == pytest.approx(float(power_law(S).distance), rel=1e-9)


@pytest.mark.parametrize("S", [torch.zeros(20), torch.ones(20), torch.ones(3), torch.tensor([3.0])])
def test_where_nothing_can_be_fitted_all_is_nan(S: Tensor) -> None:
    assert all(bool(value.isnan()) for value in power_law(S))


def test_a_batch_gives_what_each_spectrum_gives_and_scale_moves_only_the_start(generator: torch.Generator) -> None:
    S = torch.linalg.svdvals(torch.randn(2, 2, 60, 40, dtype=torch.float64, generator=generator))
    batch = power_law(S)
    assert batch.alpha.shape == (2, 2)
    assert float(batch.alpha[1, 0]) == float(power_law(S[1, 0]).alpha)
    scaled = power_law(10 * S)
    torch.testing.assert_close(scaled.alpha, batch.alpha)
    torch.testing.assert_close(scaled.xmin, 100 * batch.xmin)


def test_the_search_evaluates_a_small_part_of_all_distances(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    evaluated = 0

    def counting(logs: Tensor, rank: Tensor, starts: Tensor, slopes: Tensor, at: Tensor | None = None) -> Tensor:
        nonlocal evaluated
        evaluated += len(starts) * len(logs) if at is None else at.numel()
        return distance(logs, rank, starts, slopes, at)

    distance = powerlaw_file._distance
    monkeypatch.setattr(powerlaw_file, "_distance", counting)
    power_law(_energies("body and tail", 4096, generator).sqrt().flip(0))
    assert evaluated < 0.1 * 4096**2 / 2


def test_a_tail_of_fewer_than_two_values_is_refused() -> None:
    with pytest.raises(ValueError, match="smallest_tail"):
        power_law(torch.ones(20), smallest_tail=1)


@settings(deadline=None, max_examples=25)
@given(
    values=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0]) | st.floats(1e-3, 1e3), min_size=1, max_size=60),
    smallest_tail=st.integers(2, 12),
)
def test_whatever_the_spectrum_the_fit_is_the_exhaustive_one_or_nan(values: list[float], smallest_tail: int) -> None:
    S = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    alpha, xmin, distance = (float(value) for value in power_law(S, smallest_tail=smallest_tail))
    if alpha != alpha:
        assert xmin != xmin
        assert distance != distance
        return
    assert alpha > 1
    assert 0 <= distance <= 1
    assert float((S.square() - xmin).abs().min()) <= 1e-9 * xmin
    assert int((S.square() >= xmin * (1 - 1e-12)).sum()) >= smallest_tail
