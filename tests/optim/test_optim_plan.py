"""A method and a rank that fit into a memory."""

import json

import pytest
import torch
from torch import nn

from eckart.optim import LowRankOptimizer, memory, plan, step_in_backward
from eckart.optim.budget.planning import ROWS, bytes_of


def network() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(*(nn.Linear(512, 512) for _ in range(4)))


def test_what_is_suggested_fits_and_what_comes_before_it_does_not() -> None:
    model = network()
    most = plan(model, "1GB").candidates[0].bytes
    for limit in range(most // 2, most, most // 20):
        found = plan(model, limit)
        assert found.chosen is not None
        assert found.chosen.bytes <= limit
        assert all(each.bytes > limit and not each.fits for each in found.candidates[:-1])


def test_options_make_the_optimizer_that_was_reckoned_with() -> None:
    model = network()
    found = plan(model, "12MB")
    assert found.chosen is not None
    optimizer = LowRankOptimizer(model, lr=1e-3, **found.options())
    if found.chosen.in_backward:
        step_in_backward(optimizer)
    assert memory(model, optimizer).predicted.total == found.chosen.bytes


def test_larger_memories_never_get_smaller_ranks() -> None:
    model = network()
    ranks = [plan(model, f"{size}MB").chosen.rank for size in range(8, 24)]  # type: ignore[union-attr]
    assert sorted(ranks[1:]) == ranks[1:]


def test_steps_come_before_steps_in_backward_and_rows_in_their_order() -> None:
    found = plan(network(), 10**4)
    assert found.chosen is None
    cases = [(each.method, each.in_backward) for each in found.candidates[: 2 * len(ROWS)]]
    assert cases == [(method, layered) for method in ROWS for layered in (False, True)]


def test_what_does_not_fit_is_said_with_the_least_that_is_needed() -> None:
    found = plan(network(), "2MB")
    assert found.chosen is None
    with pytest.raises(ValueError, match=r"2\.00 MB are too few; the least is apollo-mini in the backward pass"):
        found.options()
    assert "does not fit" in str(found)
    assert json.loads(json.dumps(found.to_json()))["chosen"] is None


def test_reserve_leaves_room() -> None:
    model = network()
    assert plan(model, "16MB", reserve="4MB").to_json() == plan(model, "12MB").to_json()


def test_adamw_stands_beside_it() -> None:
    found = plan(network(), "1GB")
    each = 512 * 512 + 512
    assert found.adamw == 4 * 4 * 4 * each + 4 * 4 * 2  # weights, gradients, two moments of four layers; step counts


@pytest.mark.parametrize("size", ["6", "GB", "6 gigabytes", "-1GB", -1, True, "1.2.3GB", 1.5])
def test_a_memory_that_can_not_be_read_is_refused(size: object) -> None:
    with pytest.raises(ValueError, match="memory: "):
        plan(network(), size)  # type: ignore[arg-type]


def test_units_are_read() -> None:
    assert [bytes_of(size) for size in ("6GB", "6GiB", "0.5 MB", "12B", 7)] == [6 * 10**9, 6 * 2**30, 500_000, 12, 7]


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="methods: 'fire'"):
        plan(network(), "1GB", methods=["fire"])
