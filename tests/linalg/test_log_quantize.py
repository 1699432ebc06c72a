"""Logarithmic 8-bit codes: exact on levels, unbiased off them, and averages that keep moving."""

import pytest
import torch
from torch import Tensor

from eckart.linalg import log_dequantize, log_quantize

STEP = 2 ** (1 / 8)  # from one level to the next


def there_and_back(x: Tensor, generator: torch.Generator, *, signed: bool = True, block: int = 64) -> Tensor:
    codes, scales = log_quantize(x, signed=signed, block=block, generator=generator)
    return log_dequantize(codes, scales, signed=signed, block=block)


@pytest.mark.parametrize("signed", [True, False])
def test_what_lies_on_a_level_comes_back_as_it_was(signed: bool, generator: torch.Generator) -> None:
    levels = torch.exp2(-torch.arange(0, 120) / 8)
    x = torch.cat([levels, -levels]) if signed else levels
    back = there_and_back(3.0 * x.unsqueeze(0), generator, signed=signed, block=240)
    torch.testing.assert_close(back, 3.0 * x.unsqueeze(0), rtol=2e-6, atol=0)


@pytest.mark.parametrize(
    ("shape", "block", "blocks"), [((3, 128), 64, 2), ((3, 67), 64, 2), ((2, 5, 7), 64, 1), ((4, 1), 64, 1)]
)
def test_one_byte_for_an_entry_and_one_scale_for_a_block_of_a_row(
    shape: tuple[int, ...], block: int, blocks: int, generator: torch.Generator
) -> None:
    x = torch.randn(shape, generator=generator)
    codes, scales = log_quantize(x, block=block, generator=generator)
    assert codes.shape == x.shape
    assert codes.dtype == torch.uint8
    assert codes.is_contiguous()
    assert scales.shape == (*shape[:-1], blocks)
    first = x[..., :block].abs().amax(-1)
    assert torch.equal(scales[..., 0], first)


@pytest.mark.parametrize("signed", [True, False])
def test_an_entry_goes_to_one_of_its_two_neighbours(signed: bool, generator: torch.Generator) -> None:
    x = torch.randn(50, 67, generator=generator).exp()
    x = x * torch.randn(50, 67, generator=generator).sign() if signed else x
    ratio = there_and_back(x, generator, signed=signed) / x
    assert float(ratio.min()) > 1 / STEP - 1e-5
    assert float(ratio.max()) < STEP + 1e-5
    assert not bool((ratio == 1).all())


@pytest.mark.parametrize("signed", [True, False])
def test_the_mean_over_roundings_is_the_number(signed: bool, generator: torch.Generator) -> None:
    x = torch.tensor([1.0, 0.7, 0.33, 0.01, 2e-3]) * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0 if signed else -1.0])
    x = x if signed else x.abs()
    draws = there_and_back(x.expand(40000, 5), generator, signed=signed)
    relative = draws.mean(0) / x - 1
    assert float(relative.abs().max()) < 4 * 0.045 / 200  # four standard errors of the widest rounding


def test_below_the_lowest_level_a_signed_number_is_zero_or_the_level_and_its_mean_is_kept(
    generator: torch.Generator,
) -> None:
    lowest = 2 ** (-126 / 8)
    x = torch.tensor([1.0, 0.25 * lowest]).expand(40000, 2)
    small = there_and_back(x, generator)[:, 1]
    assert set((small / lowest).round(decimals=4).tolist()) == {0.0, 1.0}
    assert abs(float(small.mean()) / lowest - 0.25) < 4 * 0.45 / 200


def test_what_is_never_negative_becomes_zero_only_where_it_is(generator: torch.Generator) -> None:
    x = torch.tensor([[1.0, 1e-30, 0.0]])
    back = there_and_back(x, generator, signed=False)
    assert back[0, 1] == pytest.approx(2 ** (-254 / 8), rel=1e-5)
    assert back[0, 2] == 0
    assert torch.equal(there_and_back(torch.zeros(2, 3), generator), torch.zeros(2, 3))


def test_an_average_that_is_rounded_at_each_step_has_no_bias_and_the_error_that_is_said(
    generator: torch.Generator,
) -> None:
    """v ← 0.999 v + 0.001 g²: 21 % by the formula of the module; to the nearest level it would not move at all."""
    beta, sizes = 0.999, torch.logspace(0, -3, 64)
    exact, codes = torch.zeros(64, 64), log_quantize(torch.zeros(64, 64), signed=False)
    seen = []
    for step in range(1, 4001):
        square = (torch.randn(64, 64, generator=generator) * sizes).square()
        exact.lerp_(square, 1 - beta)
        rounded = log_dequantize(*codes, signed=False).lerp_(square, 1 - beta)
        codes = log_quantize(rounded, signed=False, generator=generator)
        if step > 2000 and step % 250 == 0:
            seen.append(log_dequantize(*codes, signed=False) / exact)
    ratio = torch.stack(seen)
    assert abs(float(ratio.mean()) - 1) < 0.01
    assert 0.15 < float(ratio.std()) < 0.27


def test_the_same_seed_gives_the_same_codes_and_none_is_a_seed() -> None:
    x = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(log_quantize(x)[0], log_quantize(x)[0])
    other = log_quantize(x, generator=torch.Generator().manual_seed(5))[0]
    assert not torch.equal(log_quantize(x)[0], other)


def test_a_block_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="block must be at least 1"):
        log_quantize(torch.ones(1, 2), block=0)
