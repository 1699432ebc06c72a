"""Mask laws: unbiased at every entry, nothing in evaluation, exact widths and blocks, named errors."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from eckart.regularizers import AdaptiveDropout, DropBlock, DropBlock2d, DropConnect, Dropout, adaptive_rate, odds

LAWS = {
    "dropout": lambda rate: Dropout(rate),
    "adaptive": lambda rate: AdaptiveDropout(rate),
    "block": lambda rate: DropBlock(rate, 3),
    "image": lambda rate: DropBlock2d(rate, 3),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_the_mean_of_a_mask_is_one_at_every_entry(law: str, rate: float) -> None:
    mask = LAWS[law](rate)
    draws = mask(torch.ones(20_000, 1, 6, 6))
    error = draws.std(0) / 20_000**0.5
    assert ((draws.mean(0) - 1).abs() / error).max() < 5


@pytest.mark.parametrize("law", LAWS)
def test_a_mask_does_nothing_in_evaluation_or_at_rate_zero(law: str) -> None:
    x = torch.randn(2, 3, 6, 6)
    assert LAWS[law](0.5).eval()(x) is x
    assert LAWS[law](0.0)(x) is x


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_masks_keep_the_dtype_and_pass_gradients_through_what_is_kept(law: str, dtype: torch.dtype) -> None:
    x = torch.ones(4, 3, 6, 6, dtype=dtype, requires_grad=True)
    y = LAWS[law](0.5)(x)
    y.sum().backward()
    assert y.dtype == dtype
    assert torch.equal(x.grad, y.detach())  # x is 1: the gradient is the mask


def test_dropout_is_torchs_bit_for_bit() -> None:
    x = torch.randn(50, 7)
    torch.manual_seed(3)
    expected = nn.Dropout(0.3)(x)
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.3)(x), expected)


@pytest.mark.parametrize("law", LAWS)
def test_a_generator_repeats_the_masks_and_leaves_torchs_own_alone(law: str) -> None:
    x, state = torch.randn(2, 3, 6, 6), torch.get_rng_state()
    outputs = []
    for _ in range(2):
        mask = LAWS[law](0.5)
        mask.generator = torch.Generator().manual_seed(1)
        outputs.append(mask(x))
    assert torch.equal(*outputs)
    assert torch.equal(state, torch.get_rng_state())


def test_a_model_with_masks_can_be_copied_and_its_state_has_no_mask_in_it() -> None:
    model = nn.Sequential(nn.Linear(3, 4), Dropout(0.5, generator=torch.Generator().manual_seed(0)))
    assert list(copy.deepcopy(model).state_dict()) == ["0.weight", "0.bias"]


def test_the_adaptive_rate_is_the_papers_keep_probability() -> None:
    for p in (0.1, 0.5, 0.9):
        for d in (1, 2, 7, 100):
            assert adaptive_rate(1 - p, d) == pytest.approx(1 - p / (d - (d - 1) * p))


@given(st.floats(0, 0.999), st.integers(1, 10_000))
@settings(max_examples=25)
def test_the_odds_of_the_adaptive_rate_grow_in_proportion_to_the_width(rate: float, width: int) -> None:
    assert odds(adaptive_rate(rate, width)) == pytest.approx(width * odds(rate), rel=1e-6)


def test_the_adaptive_mask_drops_by_its_last_dimension() -> None:
    draws = AdaptiveDropout(0.2)(torch.ones(4000, 10))
    assert (draws == 0).float().mean().item() == pytest.approx(adaptive_rate(0.2, 10), abs=0.01)


def test_blocks_of_a_vector_live_and_die_together_and_apart_from_each_other() -> None:
    draws = DropBlock(0.5, 3)(torch.ones(4000, 6)).unflatten(1, (2, 3))
    assert torch.equal(draws.amin(-1), draws.amax(-1))
    assert abs(torch.corrcoef(draws[..., 0].T)[0, 1]) < 0.06


def test_holes_in_images_are_squares_at_the_papers_seed_rate() -> None:
    one = torch.zeros(20_000, 1, 5, 5)
    mask = DropBlock2d(0.04, 3)
    holes = (mask(one + 1) == 0).flatten(1)
    sizes = holes.sum(1)
    assert set(sizes.unique().tolist()) <= {0, *range(9, 26)}  # a block, or overlapping ones
    none = (1 - mask.seed_rate(5, 5)) ** 9  # no seed at any of the 3·3 places
    assert (sizes == 0).float().mean().item() == pytest.approx(none, abs=0.01)
    assert mask.seed_rate(5, 5) == pytest.approx(0.04 / 9 * 25 / 9)


def test_a_block_of_one_pixel_is_dropout_and_one_of_the_whole_image_drops_channels() -> None:
    pixels = DropBlock2d(0.3, 1)(torch.ones(200, 4, 5, 5))
    assert pixels.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert (pixels == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    channels = DropBlock2d(0.3, 5)(torch.ones(200, 4, 5, 5)).flatten(2)
    assert torch.equal(channels.amin(-1), channels.amax(-1))


def test_even_blocks_cover_whole_images() -> None:
    draws = DropBlock2d(0.3, 2)(torch.ones(3000, 1, 4, 6))
    assert draws.shape == (3000, 1, 4, 6)
    assert (draws == 0).float().mean((0, 1)).amin() > 0.03


def test_drop_connect_masks_the_weight_and_never_the_bias() -> None:
    layer = nn.Linear(3, 2)
    masked = DropConnect(layer, 0.5)
    outputs = torch.stack([masked(torch.eye(3)) for _ in range(4000)]) - layer.bias
    kept = outputs.mean(0).mT  # (2, 3): the weight, on average
    torch.testing.assert_close(kept, layer.weight.detach(), atol=0.05, rtol=0)
    share = (outputs == 0).float().mean()
    assert share.item() == pytest.approx(0.5, abs=0.03)
    masked(torch.randn(5, 3)).sum().backward()
    assert layer.weight.grad is not None


def test_drop_connect_wraps_convolutions() -> None:
    conv = DropConnect(nn.Conv2d(3, 4, 3), 0.5)
    assert conv(torch.randn(2, 3, 8, 8)).shape == (2, 4, 6, 6)
    assert torch.equal(conv.eval()(torch.ones(1, 3, 8, 8)), conv.layer(torch.ones(1, 3, 8, 8)))


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
@pytest.mark.parametrize("law", LAWS)
def test_rates_outside_0_1_raise_with_the_remedy(law: str, rate: float) -> None:
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\)"):
        LAWS[law](rate)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(TypeError, match="rate must be a number"):
        Dropout("half")
    with pytest.raises(ValueError, match="divide the width 5"):
        DropBlock(0.5, 2)(torch.ones(3, 5))
    with pytest.raises(ValueError, match="block must divide"):
        DropBlock(0.5, 0)
    with pytest.raises(TypeError, match=r"block must be an int, got 2\.5"):
        DropBlock2d(0.1, 2.5)
    with pytest.raises(ValueError, match="block = 9"):
        DropBlock2d(0.5, 9)(torch.ones(1, 1, 8, 8))
    with pytest.raises(ValueError, match="no parameter 'weight'"):
        DropConnect(nn.ReLU(), 0.5)
    with pytest.raises(ValueError, match="width must be at least 1"):
        adaptive_rate(0.5, 0)
