"""Masks hide what they say they hide; schedules go where they say; patches come back as images."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eckart.regularizers import (
    bernoulli_mask,
    cosine_rate,
    exact_mask,
    hidden_count,
    images_to_patches,
    linear_rate,
    patches_to_images,
)

LAWS = {"bernoulli": bernoulli_mask, "exact": exact_mask}


@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=5), rate=st.floats(0, 0.999), seed=st.integers(0, 10**6)
)
def test_exact_masks_hide_their_number_of_each_sample_and_no_padding(
    lengths: list[int], rate: float, seed: int
) -> None:
    maskable = torch.arange(12) < torch.tensor(lengths)[:, None]
    hidden = exact_mask(maskable, rate, generator=torch.Generator().manual_seed(seed))
    assert not bool((hidden & ~maskable).any())
    assert torch.equal(hidden.sum(1), hidden_count(torch.tensor(lengths), rate))


@settings(max_examples=25)
@given(count=st.integers(2, 500), rate=st.floats(0.001, 0.999))
def test_some_items_are_hidden_and_some_are_left(count: int, rate: float) -> None:
    hidden = int(hidden_count(torch.tensor(count), rate))
    assert 1 <= hidden <= count - 1
    assert abs(hidden - rate * count) <= 1.01


@pytest.mark.parametrize("law", LAWS)
def test_every_item_is_hidden_as_often_as_any_other(law: str, generator: torch.Generator) -> None:
    hidden = LAWS[law](torch.ones(20000, 8, dtype=torch.bool), 0.75, generator=generator).double()
    assert float((hidden.mean(0) - 0.75).abs().max()) < 5 * (0.75 * 0.25 / 20000) ** 0.5


def test_bernoulli_items_are_independent_and_exact_ones_are_not(generator: torch.Generator) -> None:
    maskable = torch.ones(50000, 4, dtype=torch.bool)
    for law, expected in (("bernoulli", 0.0), ("exact", -1 / 3)):
        hidden = LAWS[law](maskable, 0.5, generator=generator).double()
        assert float(torch.corrcoef(hidden.mT)[0, 1]) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("law", LAWS)
def test_the_generator_alone_decides(law: str) -> None:
    maskable = torch.ones(3, 50, dtype=torch.bool)
    torch.manual_seed(1)
    first = LAWS[law](maskable, 0.5)
    torch.manual_seed(2)
    assert torch.equal(first, LAWS[law](maskable, 0.5))
    assert not torch.equal(first, LAWS[law](maskable, 0.5, generator=torch.Generator().manual_seed(9)))


@pytest.mark.parametrize("law", LAWS)
def test_a_rate_of_zero_hides_nothing(law: str) -> None:
    assert not bool(LAWS[law](torch.ones(3, 5, dtype=torch.bool), 0.0).any())


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("rate", [1.0, -0.5])
def test_a_rate_outside_raises(law: str, rate: float) -> None:
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\)"):
        LAWS[law](torch.ones(3, 5, dtype=torch.bool), rate)


@pytest.mark.parametrize(
    "maskable", [torch.ones(3, 0, dtype=torch.bool), torch.ones(3, dtype=torch.bool), torch.ones(3, 4)]
)
def test_a_mask_with_no_entry_or_of_numbers_raises(maskable: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"maskable must be \(N, T\) and boolean with T ≥ 1"):
        exact_mask(maskable, 0.5)


@pytest.mark.parametrize("schedule", [linear_rate, cosine_rate])
def test_schedules_meet_their_ends_and_never_turn(schedule: object) -> None:
    for start, end in ((0.2, 0.8), (0.9, 0.1)):
        rates = [schedule(start, end)(share / 20) for share in range(21)]  # type: ignore[operator]
        assert rates[0] == pytest.approx(start)
        assert rates[10] == pytest.approx(0.5)
        assert rates[-1] == pytest.approx(end)
        assert rates == sorted(rates, reverse=start > end)
    with pytest.raises(ValueError, match="rate must be in"):
        schedule(0.5, 1.0)  # type: ignore[operator]


@settings(max_examples=25)
@given(rows=st.integers(1, 4), columns=st.integers(1, 4), patch=st.integers(1, 4), channels=st.integers(1, 3))
def test_patches_come_back_as_the_images(rows: int, columns: int, patch: int, channels: int) -> None:
    h, w = rows * patch, columns * patch
    images = torch.arange(2 * channels * h * w).view(2, channels, h, w)
    patches = images_to_patches(images, patch)
    assert patches.shape == (2, rows * columns, patch * patch * channels)
    assert torch.equal(patches_to_images(patches, patch, (h, w)), images)


def test_a_patch_is_one_square_of_the_image_with_channels_last() -> None:
    images = torch.arange(2 * 4 * 6).view(1, 2, 4, 6)
    square = images[0, :, 2:4, 4:6].permute(1, 2, 0).flatten()
    assert torch.equal(images_to_patches(images, 2)[0, 5], square)


def test_images_without_whole_patches_or_channels_raise() -> None:
    with pytest.raises(ValueError, match="8×9 has no whole patches of 2×2"):
        images_to_patches(torch.zeros(1, 1, 8, 9), 2)
    with pytest.raises(ValueError, match="add the channel"):
        images_to_patches(torch.zeros(5, 8, 8), 2)
    with pytest.raises(ValueError, match=r"patches must be \(N, 16, 4·c\)"):
        patches_to_images(torch.zeros(1, 15, 4), 2, (8, 8))
