"""The terminal's table: medians over layers, intervals as intervals, unknowns as dashes, and a reading in words."""

import io

import torch
from rich.console import Console

import eckart
from eckart.report import render
from eckart.report.table import reading
from families import families


def _printed(profile: eckart.Profile, every: bool = False) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    render(profile, every=every, console=console)
    return console.export_text()


def test_a_line_for_each_kind_has_the_median_and_the_range() -> None:
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList(torch.nn.Linear(8, 8, bias=False) for _ in range(3))})
    for layer, rank in zip(model["layers"], (1, 2, 4), strict=True):
        layer.weight.data = torch.diag(torch.tensor([1.0] * rank + [0.0] * (8 - rank)))
    text = _printed(eckart.measure(model))
    assert "layers  × 3" in text
    assert "2  [1 – 4]" in text


def test_fast_profiles_show_intervals_and_dashes() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(300, 250, bias=False))
    torch.nn.init.normal_(model[0].weight, generator=torch.Generator().manual_seed(0))
    text = _printed(eckart.measure(model, mode="fast"))
    line = next(line for line in text.splitlines() if "250 × 300" in line)
    assert " – " in line
    assert line.count("│ –") + line.count("– │") >= 2


def test_every_matrix_has_a_line_when_asked() -> None:
    profile = eckart.measure(families()["llama"]()[0])
    text = _printed(profile, every=True)
    assert all(entry.name in text for entry in profile.entries)


def test_the_reading_names_the_lowest_matrix_and_what_a_budget_keeps() -> None:
    model, _ = families()["sequential"]()
    model[2].weight.data = torch.outer(torch.ones(16), torch.ones(20))
    first, second = reading(eckart.measure(model))
    assert first == "Lowest effective rank: 2 (weights), 1.0 of 16."
    assert "80 % of the parameters" in second
