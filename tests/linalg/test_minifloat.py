"""Floats of 8 bits: every code comes back, roundings have no bias, and averages keep moving."""

import pytest
import torch
from torch import Tensor

from eckart.linalg import from_minifloat, to_minifloat

STEP = 1 + 1 / 8  # from one number to the next, at most


def there_and_back(x: Tensor, generator: torch.Generator, *, signed: bool = True, block: int = 64) -> Tensor:
    codes, scales = to_minifloat(x, signed=signed, block=block, generator=generator)
    return from_minifloat(codes, scales, signed=signed, block=block)


@pytest.mark.parametrize("signed", [True, False])
def test_every_code_stands_for_a_number_that_comes_back_to_it(signed: bool, generator: torch.Generator) -> None:
    codes = torch.arange(256, dtype=torch.uint8).unsqueeze(0)
    numbers = from_minifloat(codes, torch.full((1, 1), 3.0), signed=signed, block=256)
    assert float(numbers.max()) == 3.0
    rising = numbers[0, :128] if signed else numbers[0]
    assert bool((rising.diff() > 0).all())
    again, scales = to_minifloat(numbers, signed=signed, block=256, generator=generator)
    assert float(scales) == 3.0
    assert torch.equal(again, codes)


@pytest.mark.parametrize(
    ("shape", "block", "blocks"), [((3, 128), 64, 2), ((3, 67), 64, 2), ((2, 5, 7), 64, 1), ((4, 1), 64, 1)]
)
def test_one_byte_for_an_entry_and_one_scale_for_a_block_of_a_row(
    shape: tuple[int, ...], block: int, blocks: int, generator: torch.Generator
) -> None:
    x = torch.randn(shape, generator=generator)
    codes, scales = to_minifloat(x, block=block, generator=generator)
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
    assert float(relative.abs().max()) < 4 * 0.0625 / 200  # four standard errors of the widest rounding


def test_what_is_too_small_for_a_float_of_its_own_is_zero_or_the_smallest_and_its_mean_is_kept(
    generator: torch.Generator,
) -> None:
    smallest = float(from_minifloat(torch.tensor([[127, 1]], dtype=torch.uint8), torch.ones(1, 1))[0, 1])
    assert smallest == pytest.approx(2.0**-17 / 1.875)
    x = torch.tensor([1.0, 0.25 * smallest]).expand(40000, 2)
    small = there_and_back(x, generator)[:, 1]
    assert set((small / smallest).round(decimals=4).tolist()) == {0.0, 1.0}
    assert abs(float(small.mean()) / smallest - 0.25) < 4 * 0.45 / 200


def test_what_is_never_negative_becomes_zero_only_where_it_is(generator: torch.Generator) -> None:
    x = torch.tensor([[1.0, 1e-30, 0.0]])
    back = there_and_back(x, generator, signed=False)
    assert back[0, 1] == pytest.approx(2.0**-33 / 1.875)
    assert back[0, 2] == 0
    assert torch.equal(there_and_back(torch.zeros(2, 3), generator), torch.zeros(2, 3))


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e30, 3e38])
def test_the_size_of_a_block_does_not_matter(scale: float) -> None:
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(3)).clamp(-1, 1)
    small, large = (there_and_back(each, torch.Generator().manual_seed(0)) for each in (x, x * scale))
    torch.testing.assert_close(large / scale, small, rtol=1e-5, atol=0)


def test_an_average_that_is_rounded_at_each_step_has_no_bias_and_the_error_that_is_said(
    generator: torch.Generator,
) -> None:
    """v ← 0.999 v + 0.001 g²: 21 % by the formula of the module; to the nearest level it would not move at all."""
    beta, sizes = 0.999, torch.logspace(0, -3, 64)
    exact, codes = torch.zeros(64, 64), to_minifloat(torch.zeros(64, 64), signed=False)
    seen = []
    for step in range(1, 4001):
        square = (torch.randn(64, 64, generator=generator) * sizes).square()
        exact.lerp_(square, 1 - beta)
        rounded = from_minifloat(*codes, signed=False).lerp_(square, 1 - beta)
        codes = to_minifloat(rounded, signed=False, generator=generator)
        if step > 2000 and step % 250 == 0:
            seen.append(from_minifloat(*codes, signed=False) / exact)
    ratio = torch.stack(seen)
    assert abs(float(ratio.mean()) - 1) < 0.01
    assert 0.15 < float(ratio.std()) < 0.27


def test_the_same_seed_gives_the_same_codes_and_none_is_a_seed() -> None:
    x = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(to_minifloat(x)[0], to_minifloat(x)[0])
    other = to_minifloat(x, generator=torch.Generator().manual_seed(5))[0]
    assert not torch.equal(to_minifloat(x)[0], other)


def test_a_block_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="block must be at least 1"):
        to_minifloat(torch.ones(1, 2), block=0)
