"""What T6 says of a two-layer nonlinear network, and what it does not."""

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from eckart.theory import (
    balanced_classes,
    compressed_rates,
    descend,
    energy_outside,
    low_rank_start,
    moving_block,
    nonlinear_regression,
    orthogonal_weights,
    product,
    tail_ratio,
    whiten,
)
from eckart.theory.nonlinear import Activation

K, N_IN, WIDTH = 3, 14, 24


def _setting(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, torch.Generator]:
    """W_2, whitened X, Y and the generator that drew them: classes around random means."""
    generator = torch.Generator().manual_seed(seed)
    inputs, targets, labels = balanced_classes(N_IN, K, 200, generator=generator)
    means = 2 * torch.randn(N_IN, K, generator=generator, dtype=torch.float64)
    [outer] = orthogonal_weights([WIDTH, K], 1.0, generator=generator)
    return outer, whiten(inputs + means[:, labels]), targets, generator


def _tail(activation: Activation, eps: float, seed: int = 0) -> float:
    outer, X, Y, generator = _setting(seed)
    [W] = orthogonal_weights([N_IN, WIDTH], eps, generator=generator)
    _, G = nonlinear_regression(outer, X, Y, activation)(W)
    return float(tail_ratio(G, K))


@pytest.mark.parametrize("activation", [F.gelu, F.silu, torch.tanh, F.relu, torch.sin])
def test_the_gradient_is_autograds(activation: Activation) -> None:
    outer, X, Y, _ = _setting()
    W = torch.randn(WIDTH, N_IN, dtype=torch.float64, requires_grad=True)
    loss = (outer @ activation(W @ X) - Y).square().sum() / 2
    [expected] = torch.autograd.grad(loss, W)
    value, G = nonlinear_regression(outer, X, Y, activation)(W.detach())
    torch.testing.assert_close(G, expected, rtol=1e-12, atol=1e-13)
    assert float(value) == pytest.approx(float(loss.detach()))
    assert not value.requires_grad


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_with_a_linear_activation_the_gradient_has_rank_k_and_never_leaves_the_block(seed: int) -> None:
    outer, X, Y, generator = _setting(seed)
    [W] = orthogonal_weights([N_IN, WIDTH], 0.1, generator=generator)
    slope = nonlinear_regression(outer, X, Y, torch.Tensor.clone)
    _, G = slope(W)
    assert tail_ratio(G, K) < 1e-12
    U, V = moving_block(G, W, K)
    for (now,), _ in islice(descend([W], slope, rate=0.5), 1, 30, 7):
        assert energy_outside(now - W, U, V) < 1e-24


@pytest.mark.parametrize(("activation", "order"), [(F.gelu, 1), (F.silu, 1), (torch.tanh, 2), (F.relu, 0)])
def test_the_tail_of_the_first_gradient_falls_with_the_start_as_the_activation_is_smooth(
    activation: Activation, order: int
) -> None:
    factor = _tail(activation, 1e-2) / _tail(activation, 1e-3)
    assert factor == pytest.approx(10**order, rel=0.02)


def test_nothing_is_exactly_invariant_but_for_a_linear_network() -> None:
    outer, X, Y, generator = _setting()
    [W] = orthogonal_weights([N_IN, WIDTH], 1e-3, generator=generator)
    slope = nonlinear_regression(outer, X, Y, F.gelu)
    U, V = moving_block(slope(W)[1], W, K)
    shares = [float(energy_outside(now - W, U, V)) for (now,), _ in islice(descend([W], slope, rate=0.5), 1, 600, 60)]
    assert shares[0] < 1e-6
    assert shares[-1] > 1e-2


@pytest.mark.parametrize("activation", [F.gelu, F.silu, torch.tanh])
def test_a_layer_of_rank_2k_in_the_block_learns_what_the_whole_layer_learns_and_elsewhere_it_does_not(
    activation: Activation,
) -> None:
    outer, X, Y, generator = _setting()
    [W] = orthogonal_weights([N_IN, WIDTH], 1e-3, generator=generator)
    slope = nonlinear_regression(outer, X, Y, activation)
    _, G = slope(W)

    def reached(weights: list[Tensor], rate: float | list[float]) -> float:
        return [float(loss) for _, loss in islice(descend(weights, slope, rate=rate), 61)][-1]

    whole = reached([W], 0.5)
    block = reached(low_rank_start(G, W, K), compressed_rates(1, 0.5))
    drawn = orthogonal_weights([N_IN, 2 * K], 1.0, generator=generator)[0]
    elsewhere = [drawn, 1e-3 * torch.eye(2 * K, dtype=drawn.dtype), orthogonal_weights([2 * K, WIDTH], 1.0)[0]]
    assert block < 1.4 * whole
    assert reached(elsewhere, compressed_rates(1, 0.5)) > 5 * whole


@pytest.mark.parametrize("shape", [(24, 14), (14, 24)])
def test_the_low_rank_layer_is_the_layer_inside_the_block(shape: tuple[int, int], generator: torch.Generator) -> None:
    W, G = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    U, V = moving_block(G, W, K)
    weights = low_rank_start(G, W, K)
    assert [tuple(w.shape) for w in weights] == [(6, shape[1]), (6, 6), (shape[0], 6)]
    torch.testing.assert_close(product(weights), U @ U.mT @ W @ V @ V.mT)
    assert energy_outside(product(weights), U, V) < 1e-28


def test_energy_outside_is_zero_for_a_zero_update_and_one_for_the_complement() -> None:
    U = torch.eye(4)[:, :2]
    assert energy_outside(torch.zeros(4, 4), U, U) == 0
    assert energy_outside(torch.diag(torch.tensor([0.0, 0.0, 1.0, 2.0])), U, U) == 1


def test_float32_gives_the_same_tail() -> None:
    outer, X, Y, generator = _setting()
    [W] = orthogonal_weights([N_IN, WIDTH], 0.1, generator=generator)
    _, exact = nonlinear_regression(outer, X, Y, F.silu)(W)
    _, G = nonlinear_regression(outer.float(), X.float(), Y.float(), F.silu)(W.float())
    assert G.dtype == torch.float32
    assert float(tail_ratio(G, K)) == pytest.approx(float(tail_ratio(exact, K)), rel=1e-3)


def test_bad_input_says_what_is_wrong() -> None:
    outer, X, Y, _ = _setting()
    with pytest.raises(ValueError, match=r"targets \(2, 600\) must be \(K, N\) = \(3, 600\)"):
        nonlinear_regression(outer, X, Y[:2], F.gelu)
    with pytest.raises(ValueError, match="rank must be from 1 to 3"):
        tail_ratio(torch.ones(4, 5), 4)
    with pytest.raises(ValueError, match="must have one shape"):
        moving_block(torch.ones(4, 4), torch.ones(5, 4), 1)
    with pytest.raises(ValueError, match="at least 2K = 6"):
        low_rank_start(torch.ones(4, 9), torch.ones(4, 9), 3)


def test_a_zero_gradient_has_no_tail() -> None:
    assert tail_ratio(torch.zeros(4, 4), 2) == 0
