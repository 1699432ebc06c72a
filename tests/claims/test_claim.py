"""A check holds or fails by its numbers alone, and a result survives being written down."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eckart.claims import Check, Line, Panel, Result

numbers = st.floats(-1e6, 1e6)


@given(numbers, st.floats(0, 10), st.floats(0, 10), st.booleans())
@settings(max_examples=50)
def test_an_equality_holds_within_its_tolerance_on_both_sides(
    predicted: float, tolerance: float, off: float, above: bool
) -> None:
    measured = predicted + (off if above else -off)
    assert Check("x", predicted, measured, tolerance).holds == (abs(measured - predicted) <= tolerance)


@given(numbers, numbers, st.floats(0, 10))
@settings(max_examples=50)
def test_bounds_hold_on_one_side_and_are_each_others_mirror(predicted: float, measured: float, slack: float) -> None:
    below = Check("x", predicted, measured, slack, "≤").holds
    assert below == (measured - predicted <= slack)
    assert below == Check("x", -predicted, -measured, slack, "≥").holds


def test_a_relative_tolerance_is_a_share_of_the_prediction() -> None:
    assert Check("x", -200.0, -201.9, 0.01, relative=True).holds
    assert not Check("x", -200.0, -202.1, 0.01, relative=True).holds


@pytest.mark.parametrize("measured", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("relation", ["=", "≤", "≥"])
def test_a_number_that_is_not_finite_never_agrees(measured: float, relation: str) -> None:
    assert not Check("x", 0.0, measured, 1e9, relation).holds  # type: ignore[arg-type]


@pytest.mark.parametrize(("predicted", "tolerance"), [(math.nan, 0.0), (math.inf, 0.0), (1.0, -1.0), (1.0, math.nan)])
def test_a_check_that_could_not_fail_or_hold_is_refused(predicted: float, tolerance: float) -> None:
    with pytest.raises(ValueError, match="finite prediction"):
        Check("x", predicted, 1.0, tolerance)


def test_a_result_needs_a_check_and_holds_only_if_all_do() -> None:
    with pytest.raises(ValueError, match="at least one Check"):
        Result([], [])
    good, bad = Check("x", 1.0, 1.0), Check("y", 1.0, 2.0)
    assert Result([good, good], []).holds
    assert not Result([good, bad], []).holds


def test_a_result_is_the_same_after_json_whatever_its_numbers_were_made_of() -> None:
    values = [0.5, 1.5, 2.5]
    kinds = [values, tuple(values), torch.tensor(values), np.array(values)]
    panel = Panel("t", "x", "y", [Line("a", range(3), kind) for kind in kinds], "xy")
    result = Result([Check("x", 1.0, torch.tensor(1.0)), Check("n", 2, np.float32(2.0))], [panel], "note")
    back = Result.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False)))
    assert [line.y for line in back.panels[0].lines] == [values] * 4
    assert back.panels[0].lines[0].x == [0, 1, 2]
    assert (back.holds, back.note, back.panels[0].log) == (True, "note", "xy")
    assert Result.from_json(json.loads(json.dumps(back.to_json()))) == back


def test_numbers_that_json_lacks_come_back() -> None:
    line = Line("a", [0, 1], [math.nan, -math.inf])
    result = Result([Check("x", 1.0, math.inf)], [Panel("t", "x", "y", [line])])
    back = Result.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False)))
    assert back.checks[0].measured == math.inf
    assert math.isnan(back.panels[0].lines[0].y[0])
    assert back.panels[0].lines[0].y[1] == -math.inf
