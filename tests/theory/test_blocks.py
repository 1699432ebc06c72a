"""The block form of deep linear networks (T1, T2), by training them."""

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eckart.linalg import factorization_signal
from eckart.theory import (
    balanced_classes,
    block_form,
    classification_bulk,
    descend,
    factorization,
    factorization_bulk,
    first_gradient,
    low_rank_target,
    moving_bases,
    orthogonal_weights,
    regression,
    whiten,
)


def _worst(weights: list[Tensor], bases: list[tuple[Tensor, Tensor]], width: int, rho: list[float]) -> float:
    blocks = [block_form(W, U, V, width) for W, (U, V) in zip(weights, bases, strict=True)]
    errors = [max(b.leak, b.spread, (b.bulk - value).abs()) for b, value in zip(blocks, rho, strict=True)]
    return float(max(errors))


@given(st.integers(1, 3), st.integers(1, 5), st.integers(2, 4), st.floats(0, 0.05), st.integers(0, 1000))
@settings(max_examples=25)
def test_a_factorization_stays_in_its_blocks_at_any_rank_depth_scales_and_decay(
    rank: int, bulk: int, depth: int, decay: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = 2 * rank + bulk
    scales = (0.2 + 0.8 * torch.rand(depth, generator=generator)).tolist()
    units = orthogonal_weights([size] * (depth + 1), 1.0, generator=generator)
    start = [eps * W for eps, W in zip(scales, units, strict=True)]
    target = low_rank_target((size, size), torch.linspace(2, 1, rank).tolist(), generator=generator)
    bases = moving_bases(start, factorization_signal(start, target), rank)
    rho = factorization_bulk(scales, 200, rate=0.05, decay=decay)
    for t, (weights, _) in enumerate(islice(descend(start, factorization(target), rate=0.05, decay=decay), 201)):
        if t % 50 == 0:
            assert _worst(weights, bases, 2 * rank, rho[t].tolist()) < 1e-12


@given(st.integers(2, 4), st.integers(1, 6), st.integers(2, 4), st.floats(0, 0.05), st.integers(0, 1000))
@settings(max_examples=25)
def test_a_classifier_stays_in_its_blocks_in_all_layers_but_the_last(
    classes: int, bulk: int, depth: int, decay: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = 2 * classes + bulk
    inputs, targets, _ = balanced_classes(size, classes, size, generator=generator)
    slope = regression(whiten(inputs), targets)
    start = orthogonal_weights([size] * depth + [classes], 0.7, generator=generator)
    bases = moving_bases(start[:-1], first_gradient(start, slope), classes)
    rho = classification_bulk(0.7, 200, rate=0.05, decay=decay)
    for t, (weights, _) in enumerate(islice(descend(start, slope, rate=0.05, decay=decay), 201)):
        if t % 50 == 0:
            assert _worst(weights[:-1], bases, 2 * classes, [float(rho[t])] * (depth - 1)) < 1e-12


def test_blocks_for_too_small_a_rank_leak() -> None:
    start = orthogonal_weights([10] * 4, 0.5)
    target = low_rank_target((10, 10), [2.0, 1.5, 1.0])
    bases = moving_bases(start, factorization_signal(start, target), 2)
    weights, _ = next(islice(descend(start, factorization(target), rate=0.05), 100, None))
    assert max(float(block_form(W, U, V, 4).leak) for W, (U, V) in zip(weights, bases, strict=True)) > 0.01


def test_bases_are_orthogonal_follow_each_other_and_show_the_start_as_a_multiple_of_the_identity() -> None:
    generator = torch.Generator().manual_seed(3)
    start = [2.0 * W for W in orthogonal_weights([8] * 4, 0.5, generator=generator)]
    signal = low_rank_target((8, 8), [1.0, 0.5], generator=generator)
    bases = moving_bases(start, signal, 2)
    eye = torch.eye(8, dtype=torch.float64)
    for W, (U, V) in zip(start, bases, strict=True):
        torch.testing.assert_close(U.mT @ U, eye)
        torch.testing.assert_close(U.mT @ W @ V, eye)
    assert torch.equal(bases[1][1], bases[0][0])


def test_block_form_reads_what_was_put_in() -> None:
    generator = torch.Generator().manual_seed(0)
    U, V = orthogonal_weights([6, 6, 6], 1.0, generator=generator)
    M = torch.zeros(6, 6, dtype=torch.float64)
    M[:2, :2] = torch.tensor([[3.0, 1.0], [0.0, 2.0]])
    M[2:, 2:] = 0.4 * torch.eye(4)
    M[4, 1], M[0, 5], M[3, 2] = -0.3, 0.2, 0.01
    block = block_form(U @ M @ V.mT, U, V, 2)
    torch.testing.assert_close(block.moving, M[:2, :2])
    torch.testing.assert_close(torch.stack(block[1:]), torch.tensor([0.4, 0.3, 0.01], dtype=torch.float64))


def test_equal_scales_follow_the_scalar_recursion() -> None:
    course = factorization_bulk([0.9] * 4, 50, rate=0.02, decay=0.1)
    rho = 0.9
    for row in course:
        assert row.tolist() == pytest.approx([rho] * 4, rel=1e-12)
        rho *= 1 - 0.02 * 0.1 - 0.02 * rho**6


def test_the_bulk_of_one_layer_only_feels_the_others() -> None:
    still = factorization_bulk([0.5, 0.0, 0.7], 10, rate=0.1)
    assert still[:, 0].tolist() == [0.5] * 11
    assert still[:, 1].tolist() == [0.0] * 11


@pytest.mark.parametrize("width", [0, 6, 7])
def test_a_width_without_block_or_bulk_is_named(width: int) -> None:
    eye = torch.eye(6)
    with pytest.raises(ValueError, match="width must be from 1 to 5"):
        block_form(eye, eye, eye, width)
