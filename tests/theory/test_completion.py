"""complete_matrix recovers what is of low rank, whatever its units, withstands noise, and says what it can't do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eckart.theory import complete_matrix, low_rank_target
from eckart.theory.fitting import Fit, looks
from eckart.theory.observed import prepare, standardise


def _problem(noise: float = 0.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A rank-2 matrix (60, 40) of unit variance, what is seen of it, and where."""
    generator = torch.Generator().manual_seed(seed)
    target = low_rank_target((60, 40), [40.0, 28.0], generator=generator)
    mask = torch.rand(60, 40, generator=generator) < 0.5
    return target, target + noise * torch.randn(60, 40, generator=generator, dtype=target.dtype), mask


def _error(found: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> float:
    return float((found - target)[~mask].norm() / target[~mask].norm())


def test_a_clean_matrix_is_recovered_and_the_decay_let_go() -> None:
    target, observed, mask = _problem()
    found = complete_matrix(observed, mask, 3)
    assert _error(found.matrix, target, mask) < 1e-4
    assert found.phases[-1][0] == 0
    assert found.left.shape == (60, 6)
    assert found.right.shape == (6, 40)
    torch.testing.assert_close(found.mean + found.scale * (found.left @ found.right), found.matrix)


def test_noise_is_not_fitted() -> None:
    target, observed, mask = _problem(noise=0.4)
    found = complete_matrix(observed, mask, 6)
    assert _error(found.matrix, target, mask) < 0.4
    bare = complete_matrix(observed, mask, 6, decay=0.0)
    assert _error(found.matrix, target, mask) < _error(bare.matrix, target, mask)


def test_it_is_the_error_on_held_out_entries_that_stops_and_chooses() -> None:
    _, observed, mask = _problem(noise=0.4)
    found = complete_matrix(observed, mask, 6)
    decay, steps = found.phases[0]
    assert found.trials[decay] == min(found.trials.values())
    assert found.errors[steps // 10] == found.trials[decay]
    assert "no lower held-out error" in found.stopped
    assert len(found.errors) == steps // 10 + 11
    assert len(found.losses) == sum(count // 10 + 1 for _, count in found.phases)


@settings(max_examples=8, deadline=None)
@given(shift=st.floats(-1e3, 1e3), power=st.integers(-8, 8))
def test_units_do_not_matter(shift: float, power: int) -> None:
    _, observed, mask = _problem(noise=0.3)
    scale = 10.0 ** torch.linspace(0, power, 40, dtype=torch.float64)
    plain = complete_matrix(observed, mask, 2, decay=0.1)
    other = complete_matrix(scale * (observed + shift), mask, 2, decay=0.1)
    torch.testing.assert_close(other.matrix / scale - shift, plain.matrix, atol=1e-6, rtol=1e-6)


def test_what_was_not_observed_does_not_matter() -> None:
    _, observed, mask = _problem(noise=0.3)
    hidden = torch.where(mask, observed, float("nan"))
    assert torch.equal(complete_matrix(hidden, mask, 2, decay=0.1).matrix,
                       complete_matrix(observed, mask.int(), 2, decay=0.1).matrix)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int64])
def test_any_real_dtype_comes_in(dtype: torch.dtype) -> None:
    target, observed, mask = _problem()
    found = complete_matrix((100 * observed).to(dtype), mask, 3)
    assert found.matrix.dtype == (dtype if dtype.is_floating_point else torch.float32)
    assert _error(found.matrix.double(), 100 * target, mask) < 0.05


def test_the_papers_own_way_is_one_of_the_options() -> None:
    target, observed, mask = _problem()
    found = complete_matrix(observed, mask, 2, depth=5, discrepant=0.01, decay=0.0, eps=0.3, steps=6000)
    assert _error(found.matrix, target, mask) < 0.3
    assert found.phases == [(0.0, found.phases[0][1])]


@pytest.mark.parametrize("shape", [(300, 30), (30, 300)])
@pytest.mark.parametrize("weakest", [0.1, 0.02])
def test_weak_directions_are_found_too(shape: tuple[int, int], weakest: float) -> None:
    generator = torch.Generator().manual_seed(0)
    target = low_rank_target(shape, [100.0, 50.0, 100 * weakest], generator=generator)
    mask = torch.rand(shape, generator=generator) < 0.5
    found = complete_matrix(target, mask, 4)
    assert _error(found.matrix, target, mask) < 0.2 * weakest


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_the_depth_is_chosen_on_held_out_entries_and_a_close_call_is_the_first(noise: float) -> None:
    _, observed, mask = _problem(noise=noise)
    errors = {depth: complete_matrix(observed, mask, 4, depth=depth).error for depth in (3, 2)}
    for depths in ((3, 2), (2, 3)):
        found = complete_matrix(observed, mask, 4, depth=depths)
        assert found.depth == depths[errors[depths[1]] * 1.05 < errors[depths[0]]]
        assert found.error == errors[found.depth]


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_where_nothing_can_be_learned_the_means_are_the_estimate(depth: int) -> None:
    observed = torch.randn(60, 40, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(60, 40, generator=torch.Generator().manual_seed(1)) < 0.1
    found = complete_matrix(observed, mask, 3, depth=depth)
    assert _error(found.matrix, found.mean.expand_as(observed), mask) < 0.05


def test_a_constant_matrix_is_completed_by_its_constant() -> None:
    mask = torch.rand(10, 8, generator=torch.Generator().manual_seed(0)) < 0.7
    assert torch.equal(complete_matrix(torch.full((10, 8), 3.0), mask, 2).matrix, torch.full((10, 8), 3.0))


def test_progress_counts_to_its_total() -> None:
    _, observed, mask = _problem(noise=0.3)
    seen: list[tuple[int, int]] = []
    complete_matrix(observed, mask, 2, steps=50, progress=lambda done, total, label: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]


def test_a_diverging_fit_starts_again_at_half_the_rate() -> None:
    _, observed, mask = _problem()
    fit = Fit.start(observed, mask, 4, 3, 0.01, 1.0)
    fit = fit._replace(rates=[20 * rate for rate in fit.rates])
    course = list(looks(fit, 0.0, 300))
    assert [step for step, *_ in course].count(0) > 1
    assert course[-1][2] < 0.1 * course[0][2]


def test_a_column_that_is_constant_but_for_an_entry_does_not_become_an_outlier() -> None:
    column = torch.zeros(200, 1)
    column[7] = 5.0
    X, (_, scale) = standardise(*prepare(column, torch.ones(200, 1)))
    assert X.max() < 5
    assert scale > column.std()


def test_bad_input_is_refused_with_the_remedy() -> None:
    _, observed, mask = _problem()
    refused: list[tuple[str, dict]] = [
        (r"observed \(60, 40\) and mask \(60, 39\) must be matrices of one shape", {"mask": mask[:, :-1]}),
        (r"has no entry", {"mask": torch.zeros_like(mask)}),
        (r"must hold True and False", {"mask": 0.5 * mask}),
        (r"rank must be from 1 to min\(m, n\)/2 = 20", {"rank": 21}),
        (r"held_out is out of range", {"held_out": 1.0}),
        (r"discrepant is out of range: above 0", {"discrepant": 0.0}),
        (r"decay is out of range", {"decay": [0.1, -0.1]}),
        (r"depth is out of range", {"depth": 1}),
        (r"depth is out of range", {"depth": ()}),
        (r"steps is out of range", {"steps": 0}),
        (r"eps is out of range", {"eps": 0.0}),
        (r"NaN or infinite.*take them out of the mask", {"observed": torch.full_like(observed, float("nan"))}),
    ]
    for message, change in refused:
        with pytest.raises(ValueError, match=message):
            complete_matrix(**{"observed": observed, "mask": mask, "rank": 3} | change)
    with pytest.raises(TypeError, match=r"real torch\.Tensor"):
        complete_matrix([[1.0]], mask, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(("dim", "name"), [(0, "rows"), (1, "columns")])
def test_empty_rows_and_columns_are_named(dim: int, name: str) -> None:
    _, observed, mask = _problem()
    mask.select(dim, 3).fill_(False)
    mask.select(dim, 17).fill_(False)
    with pytest.raises(ValueError, match=rf"2 {name} without an observed entry \(3, 17\).*leave them out"):
        complete_matrix(observed, mask, 2)


def test_the_smallest_matrix_is_completed() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    found = complete_matrix(torch.tensor([[1.0, 0.0], [2.0, 4.0]]), mask, 1, held_out=0.99)
    assert found.matrix.isfinite().all()


def test_too_few_entries_to_beat_the_means_are_told(generator: torch.Generator) -> None:
    Phi = torch.randn(60, 2, generator=generator) @ torch.randn(2, 60, generator=generator)
    mask = (torch.rand(60, 60, generator=generator) < 0.03) | torch.eye(60, dtype=torch.bool)
    with pytest.warns(UserWarning, match="times as much as the columns' means"):
        complete_matrix(Phi, mask, rank=2)
