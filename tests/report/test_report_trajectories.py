"""The figure of a training run shows the recorder's numbers, in degrees, and only what was recorded."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import eckart
from eckart.report import trajectory

STEPS = [0, 10, 20, 30]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """A small network that learns four classes of a few directions; recorded before the first step too."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(256, 16, generator=generator)
    model = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.GELU(), *(torch.nn.Linear(24, 24) for _ in range(4)))
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    recorder = eckart.Recorder(model, rank=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(31):
        if step in STEPS:
            recorder.step(step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(X), X[:, :4].argmax(dim=1)).backward()
        optimizer.step()
    return recorder.rows()


def of(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["name"] == name]


def test_every_leading_value_is_a_line_over_the_recorded_steps(rows: list[dict[str, Any]]) -> None:
    left = trajectory(rows, names="2").axes[0]
    recorded = of(rows, "2")
    assert len(left.lines) == len(recorded[0]["values"])
    assert list(left.lines[1].get_xdata()) == STEPS
    assert list(left.lines[1].get_ydata()) == [row["values"][1] for row in recorded]


def test_angles_are_drawn_in_degrees_with_a_gap_where_the_matrix_had_not_moved(rows: list[dict[str, Any]]) -> None:
    right = trajectory(rows, names=["2"]).axes[1]
    for line, key in zip(right.lines, ("angle_to_first", "angle_to_last"), strict=True):
        drawn = list(line.get_ydata())
        assert math.isnan(drawn[0])
        assert drawn[1:] == pytest.approx([math.degrees(row[key]) for row in of(rows, "2")[1:]])
    assert right.lines[1].get_ydata()[-1] == pytest.approx(0, abs=0.1)


def test_four_matrices_from_first_to_last_are_drawn_when_none_are_named(rows: list[dict[str, Any]]) -> None:
    figure = trajectory(rows)
    assert len({row["name"] for row in rows}) == 5
    assert [axes.get_title(loc="left") for axes in figure.axes[::2]] == ["0", "2", "4", "5"]
    assert len(figure.axes) == 8


def test_named_matrices_are_drawn_in_their_order(rows: list[dict[str, Any]]) -> None:
    assert [axes.get_title(loc="left") for axes in trajectory(rows, names=["5", "0"]).axes[::2]] == ["5", "0"]


@pytest.mark.parametrize(("names", "message"), [("nowhere", r"no matrix 'nowhere'"), ([], "at least one name")])
def test_names_that_choose_nothing_are_errors(rows: list[dict[str, Any]], names: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trajectory(rows, names=names)


def test_a_recorder_that_recorded_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match=re.escape("recorder.step(t)")):
        trajectory(eckart.Recorder(torch.nn.Linear(3, 2)).rows())


def test_the_file_is_written_and_not_over_another(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "run.png"
    trajectory(rows, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(FileExistsError, match=r"run\.png"):
        trajectory(rows, path)
    trajectory(rows, path, force=True)
