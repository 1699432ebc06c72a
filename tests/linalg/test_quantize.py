"""Blockwise quantisation: error bounds, packing, bytes; stochastic rounding: unbiased, exact where it can be."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eckart.linalg import dequantize, quantize, stochastic_round

LEVELS = {8: 127, 4: 7}
SHAPES = [(1,), (63,), (64,), (65,), (5, 13), (3, 4, 7), (0,), ()]


@pytest.mark.parametrize("bits", LEVELS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_error_is_at_most_half_a_step_of_the_block(
    bits: int, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> None:
    x = torch.randn(shape, generator=generator).to(dtype)
    q = quantize(x, bits, block=16)
    back = dequantize(q, torch.float64)
    assert back.shape == x.shape
    assert q.scales.dtype == torch.float32
    steps = q.scales.double().repeat_interleave(16)[: x.numel()].reshape(shape)
    assert bool(((back - x.double()).abs() <= steps * (0.5 + 1e-5)).all())


@pytest.mark.parametrize(("bits", "code_bytes"), [(8, 1001), (4, 501)])
def test_bytes_are_the_packed_codes_and_four_for_each_block(bits: int, code_bytes: int) -> None:
    q = quantize(torch.randn(1001, generator=torch.Generator().manual_seed(0)), bits, block=64)
    assert q.codes.dtype == (torch.int8 if bits == 8 else torch.uint8)
    assert q.codes.numel() == code_bytes
    assert q.nbytes == code_bytes + 4 * 16


@pytest.mark.parametrize("bits", LEVELS)
def test_codes_times_scales_come_back_exactly(bits: int) -> None:
    level = LEVELS[bits]
    x = torch.arange(-level, level + 1, dtype=torch.float32) * 0.25
    for stochastic in (False, True):
        assert torch.equal(dequantize(quantize(x, bits, block=len(x), stochastic=stochastic)), x)


def test_two_codes_share_a_byte_the_earlier_in_the_low_half() -> None:
    q = quantize(torch.tensor([7.0, -7.0, 1.0]), bits=4)
    assert q.codes.tolist() == [15 | (1 << 4), 9 | (8 << 4)]


@pytest.mark.parametrize("bits", LEVELS)
def test_zero_blocks_stay_zero_beside_others(bits: int) -> None:
    x = torch.cat((torch.zeros(8), torch.full((8,), 3.0), torch.zeros(4)))
    for stochastic in (False, True):
        assert torch.equal(dequantize(quantize(x, bits, block=8, stochastic=stochastic)), x)


@pytest.mark.parametrize("bits", LEVELS)
@pytest.mark.parametrize("size", [1e-44, 1e-39, 1e38])
def test_extreme_sizes_stay_finite_and_within_range(bits: int, size: float) -> None:
    x = torch.tensor([1.0, -0.5, 0.1, 0.0]) * size
    back = dequantize(quantize(x, bits))
    assert bool(torch.isfinite(back).all())
    assert bool((back.abs() <= 2 * x.abs().max()).all())


@pytest.mark.parametrize("bits", LEVELS)
def test_a_large_entry_spoils_only_its_own_block(bits: int, generator: torch.Generator) -> None:
    x = torch.randn(256, generator=generator)
    spoiled = x.clone()
    spoiled[0] = 1e6
    assert torch.equal(dequantize(quantize(spoiled, bits))[64:], dequantize(quantize(x, bits))[64:])


@pytest.mark.parametrize("bits", LEVELS)
def test_stochastic_rounding_has_the_tensor_as_its_mean(bits: int, generator: torch.Generator) -> None:
    x = torch.tensor([1.0, -1.0, 0.3, -0.7, 0.013, -0.05, 0.0, 0.999])
    many = x.repeat(20_000, 1)
    mean = dequantize(quantize(many, bits, block=8, stochastic=True, generator=generator)).double().mean(0)
    deviation = 0.5 / LEVELS[bits] / 20_000**0.5  # at most half a step for one draw
    assert bool(((mean - x.double()).abs() <= 5 * deviation + 1e-7).all())
    nearest = dequantize(quantize(x, bits, block=8))
    assert float((nearest - x).abs().max()) > 10 * deviation  # rounding to nearest would not pass


def test_the_same_seed_gives_the_same_codes_and_another_gives_others(generator: torch.Generator) -> None:
    x = torch.randn(500, generator=generator)
    one = quantize(x, stochastic=True, generator=torch.Generator().manual_seed(5)).codes
    assert torch.equal(one, quantize(x, stochastic=True, generator=torch.Generator().manual_seed(5)).codes)
    assert not torch.equal(one, quantize(x, stochastic=True, generator=torch.Generator().manual_seed(6)).codes)
    assert torch.equal(quantize(x, stochastic=True).codes, quantize(x, stochastic=True).codes)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), max_size=70), st.integers(1, 20), st.sampled_from([4, 8]))
def test_negation_negates_and_zeros_stay(values: list[float], block: int, bits: int) -> None:
    x = torch.tensor(values)
    back = dequantize(quantize(x, bits, block=block))
    assert torch.equal(dequantize(quantize(-x, bits, block=block)), -back)
    assert not back[x == 0].any()


def test_a_transposed_view_is_read_in_its_own_order(generator: torch.Generator) -> None:
    x = torch.randn(6, 10, generator=generator).T
    assert torch.equal(dequantize(quantize(x)), dequantize(quantize(x.contiguous())))


def test_bad_arguments_are_named() -> None:
    x = torch.ones(4)
    with pytest.raises(ValueError, match="bits must be 8 or 4, got 3"):
        quantize(x, 3)
    with pytest.raises(ValueError, match="block"):
        quantize(x, block=0)
    with pytest.raises(ValueError, match=r"x, .* 1 entries"):
        quantize(torch.tensor([1.0, float("inf")]))
    with pytest.raises(ValueError, match="float32"):
        quantize(torch.tensor([1e300], dtype=torch.float64))
    with pytest.raises(TypeError, match="int64"):
        quantize(torch.arange(4))


@pytest.mark.parametrize("value", [1.002, -1.002, 3.1e-5, -7.7e20, 1e-40])
def test_stochastic_round_has_the_value_as_its_mean(value: float, generator: torch.Generator) -> None:
    x = torch.full((40_000,), value)
    rounded = stochastic_round(x, generator=generator).double()
    neighbours = rounded.unique()
    assert len(neighbours) == 2
    gap = float(neighbours[1] - neighbours[0])
    assert neighbours[0] < float(x[0]) < neighbours[1]
    assert abs(float(rounded.mean()) - float(x[0].double())) <= 5 * 0.5 * gap / 200


def test_what_bfloat16_holds_stays_exactly() -> None:
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16)
    same = stochastic_round(every.float())
    number = ~every.isnan()
    assert torch.equal(same[number], every[number])
    assert torch.equal(same[number].signbit(), every[number].signbit())
    assert bool(same[~number].isnan().all())


def test_a_finite_value_never_becomes_infinite_and_infinity_stays() -> None:
    largest = torch.finfo(torch.bfloat16).max
    x = torch.tensor([3.4028e38, -3.4028e38, float("inf"), -float("inf")]).repeat(1000, 1)
    rounded = stochastic_round(x).float()
    assert torch.equal(rounded, torch.tensor([largest, -largest, float("inf"), -float("inf")]).expand(1000, 4))


def test_updates_below_half_a_step_survive_stochastic_rounding_only(generator: torch.Generator) -> None:
    steady = random = torch.ones(2000)
    for _ in range(100):
        steady = (steady + 1e-3).bfloat16().float()
        random = stochastic_round(random + 1e-3, generator=generator).float()
    assert float(steady.mean()) == 1
    assert float(random.mean()) == pytest.approx(1.1, abs=0.005)


def test_stochastic_round_keeps_the_shape_of_a_view_and_refuses_other_dtypes(generator: torch.Generator) -> None:
    x: Tensor = torch.randn(4, 6, generator=generator).T[::2]
    assert stochastic_round(x).shape == x.shape
    with pytest.raises(TypeError, match="float64"):
        stochastic_round(x.double())
    with pytest.raises(TypeError, match="float16"):
        stochastic_round(x, torch.float16)
