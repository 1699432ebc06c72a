"""nn.patterns: which names a glob chooses, and where a name stands in the model."""

import pytest

from eckart.nn import locate, member_name, select, split_member
from eckart.nn.patterns import closest

NAMES = [
    "m.layers.0.attn.q_proj",
    "m.layers.0.mlp.up_proj",
    "m.layers.1.attn.q_proj",
    "m.layers.10.mlp.up_proj",
    "head",
]


@pytest.mark.parametrize(
    ("targets", "chosen"),
    [
        (None, [0, 1, 2, 3, 4]),
        ("q_proj", [0, 2]),
        ("attn.q_proj", [0, 2]),
        ("*.mlp.*", [1, 3]),
        ("layers.1.*", [2]),
        ("m.layers.?.mlp.up_proj", [1]),
        (["head", "q_proj"], [0, 2, 4]),
        ("*", [0, 1, 2, 3, 4]),
    ],
)
def test_a_pattern_matches_whole_names_and_whole_trailing_components(targets, chosen):
    assert select(NAMES, targets) == [NAMES[i] for i in chosen]


@pytest.mark.parametrize("pattern", ["proj", "_proj", "attn", "Q_PROJ", ""])
def test_a_part_of_a_component_is_no_match(pattern):
    with pytest.raises(ValueError, match=r"targets: .* matches none of 5 names; closest: "):
        select(NAMES, pattern)


def test_exclude_wins_over_targets():
    assert select(NAMES, "*.layers.*", exclude="*.0.*") == NAMES[2:4]


def test_a_pattern_that_excludes_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"exclude: 'k_proj' matches none of 5 names; closest: .*q_proj"):
        select(NAMES, exclude="k_proj")


def test_a_pattern_that_is_not_a_string_is_an_error():
    with pytest.raises(TypeError, match="targets holds 3 of type int"):
        select(NAMES, ["head", 3])


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.12.self_attn.q_proj", (12, "self_attn.q_proj")),
        ("model.layers.3.moe.experts.7.w1", (3, "moe.experts.7.w1")),
        ("features.4", (4, "features")),
        ("2", (2, "layer")),
        ("lm_head", (None, "lm_head")),
        ("block3.conv", (None, "block3.conv")),
    ],
)
def test_a_name_splits_at_its_first_integer(name, place):
    assert locate(name) == place


def test_a_member_of_a_stack_is_named_exactly_and_a_stack_names_all_its_members():
    names = [member_name("layers.0.experts.down", index) for index in range(12)]
    assert select(names, "experts.down[1]") == ["layers.0.experts.down[1]"]
    assert select(names, "experts.down") == names
    assert split_member(names[11]) == ("layers.0.experts.down", 11)
    assert locate(names[11]) == (0, "experts.down")


def test_the_closest_names_are_whole_where_a_name_is_asked_and_may_be_ends_where_a_pattern_is():
    names = ["layers.0.q_proj", "layers.0.k_proj", "head"]
    assert set(closest("layers.0.k_porj", names, whole=True).split(", ")) <= set(names)
    assert closest("*.k_porj", names).startswith("k_proj")
    assert closest("xyz", names, whole=True) == "layers.0.q_proj, layers.0.k_proj, head"
    assert closest("xyz", []) == "(there are no names)"
