"""The figure draws the chosen spectra and every layer, through no global state."""

import subprocess
import sys
from pathlib import Path

import pytest

from eckart.report import plot
from eckart.spectra import Profile


def test_the_named_spectra_are_drawn_with_their_own_values(profile: Profile) -> None:
    name = "model.layers.1.mlp.up_proj"
    axes = plot(profile, [name]).axes[0]
    values = next(e.values for e in profile.entries if e.name == name)
    assert axes.lines[0].get_ydata().tolist() == values.tolist()
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_the_noise_edge_is_a_line_at_its_value(profile: Profile) -> None:
    name = "model.layers.1.mlp.up_proj"
    edge = next(row["noise_edge"] for row in profile.rows("weights") if row["name"] == name)
    assert list(plot(profile, name).axes[0].lines[1].get_ydata()) == [edge, edge]


def test_every_kind_is_a_line_over_the_layers(profile: Profile) -> None:
    lines = {line.get_label(): line for line in plot(profile).axes[1].lines}
    assert set(lines) == {"self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"}
    assert list(lines["mlp.up_proj"].get_xdata()) == [0, 1, 2]


def test_six_spectra_from_lowest_to_highest_are_drawn_when_none_are_named(profile: Profile) -> None:
    rows = sorted(profile.rows("weights"), key=lambda row: row["effective_rank_fraction"])
    labels = [text.get_text() for text in plot(profile).axes[0].get_legend().get_texts()]
    assert len(labels) == 6
    assert (labels[0], labels[-1]) == (rows[0]["name"], rows[-1]["name"])


def test_a_fast_profile_shows_its_ranges_as_bands(fast_profile: Profile) -> None:
    assert len(plot(fast_profile).axes[1].collections) == 3


def test_the_other_measurements_are_drawn_when_asked_for(profile: Profile) -> None:
    assert plot(profile, of="activations").axes[0].get_title() == "Spectra (activations)"


def test_an_unknown_name_is_named(profile: Profile) -> None:
    with pytest.raises(ValueError, match=r"no matrix 'nowhere'"):
        plot(profile, "nowhere")


def test_an_absent_measurement_is_named_with_those_that_are_there(profile: Profile) -> None:
    with pytest.raises(ValueError, match=r"no 'updates', it holds .*activations.*weights"):
        plot(profile, of="updates")


def test_the_file_is_written_in_the_format_of_its_name_and_not_over_another(profile: Profile, tmp_path: Path) -> None:
    path = tmp_path / "spectra.svg"
    plot(profile, path=path)
    assert path.read_text().startswith("<?xml")
    with pytest.raises(FileExistsError, match=r"spectra\.svg"):
        plot(profile, path=path)
    plot(profile, path=path, force=True)


def test_plotting_starts_no_pyplot() -> None:
    code = (
        "import sys, torch, eckart; from eckart.report import plot; "
        "plot(eckart.measure(torch.nn.Sequential(torch.nn.Linear(4, 4)))); print('matplotlib.pyplot' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
