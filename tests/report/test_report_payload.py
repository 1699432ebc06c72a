"""What the page embeds: the map's layout, thinned spectra, and JSON that no name can break out of."""

import json
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eckart.report.columns import COLUMNS
from eckart.report.payload import embedded, glossary, layout, plain, sections, spectrum, thinned
from eckart.spectra import Entry, Profile


def places(*names: tuple[str, int | None, str]) -> list[dict[str, object]]:
    return [{"name": name, "layer": layer, "kind": kind} for name, layer, kind in names]


def test_the_map_has_one_place_for_every_matrix(profile: Profile) -> None:
    for section in sections(profile):
        lines = section["map"]["lines"]
        placed = [row for line in lines for row in line.get("cells", [line.get("wide")]) if row is not None]
        assert sorted(placed) == list(range(len(section["rows"])))


def test_encoder_and_decoder_layers_of_one_number_are_two_lines() -> None:
    found = layout(places(("encoder.block.0.q", 0, "q"), ("decoder.block.0.q", 0, "q")))
    assert [line["label"] for line in found["lines"]] == ["encoder.block.0", "decoder.block.0"]
    assert [line["cells"] for line in found["lines"]] == [[0], [1]]


def test_kinds_of_one_group_stand_together() -> None:
    names = places(("h.0.attn.q", 0, "attn.q"), ("h.0.mlp.up", 0, "mlp.up"), ("h.1.attn.k", 1, "attn.k"))
    assert layout(names)["kinds"] == [("attn", "q"), ("attn", "k"), ("mlp", "up")]


def test_a_plain_sequential_has_a_line_for_each_module() -> None:
    found = layout(places(("0", 0, ""), ("2", 2, "")))
    assert found == {"kinds": [("", "")], "lines": [{"label": "0", "cells": [0]}, {"label": "2", "cells": [1]}]}


@given(st.integers(1, 200_000))
def test_thinning_keeps_both_ends_in_order_and_within_the_limit(count: int) -> None:
    at = thinned(count, 512)
    assert (at[0], at[-1]) == (0, count - 1)
    assert len(at) <= 512
    assert all(a < b for a, b in pairwise(at))


def test_a_long_spectrum_is_drawn_at_its_own_indices() -> None:
    S = torch.arange(4096, 0, -1, dtype=torch.float64)
    drawn = spectrum(Entry("w", "weights", (4096, 4096), S, float(S.square().sum()), rounding=1e-9))
    assert drawn["count"] == drawn["known"] == 4096
    assert all(
        value == pytest.approx(4097 - i, rel=1e-4) for i, value in zip(drawn["at"], drawn["values"], strict=True)
    )


def test_what_is_not_finite_becomes_null() -> None:
    assert [plain(float("nan")), plain(float("inf")), plain((1.0, float("inf")))] == [None, None, [1.0, None]]


def test_a_column_without_words_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"no words for the columns \['mystery'\]"):
        glossary(["name", "mystery"], COLUMNS)


@given(st.text())
def test_embedded_json_reads_back_and_holds_no_markup(name: str) -> None:
    text = embedded({name: [1.5, None]})
    assert json.loads(text) == {name: [1.5, None]}
    assert not set("<>&\u2028\u2029") & set(text)
