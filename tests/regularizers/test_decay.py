"""Weight decay on factors: its closed-form optimum is a minimum, and the penalty on the product is the least one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eckart.linalg import nuclear_norm
from eckart.regularizers.decay import decay_optimum, decay_penalty, imbalance, least_decay

PAPER = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5, 0.2], dtype=torch.float64))


def _product(weights: list[Tensor]) -> Tensor:
    P = weights[0]
    for W in weights[1:]:
        P = W @ P
    return P


def _objective(weights: list[Tensor], target: Tensor, decay: float) -> float:
    return float((_product(weights) - target).square().sum() / 2 + decay * decay_penalty(weights))


@pytest.mark.parametrize(
    ("depth", "values"),
    [
        (2, (2.9, 1.9, 0.9, 0.4, 0.1)),
        (3, (2.9301, 1.9195, 0.8963, 0.3593, 0.0)),
        (4, (2.9417, 1.928, 0.8943, 0.0, 0.0)),
    ],
)
def test_the_optimum_has_the_papers_values(depth: int, values: tuple[float, ...]) -> None:
    found = decay_optimum(PAPER, depth, 0.1)
    assert found.values.tolist() == pytest.approx(values, abs=5e-5)


def test_one_layer_is_ridge() -> None:
    [W] = decay_optimum(PAPER, 1, 0.25).weights
    torch.testing.assert_close(W, PAPER / 1.25)


@settings(max_examples=25)
@given(
    depth=st.integers(1, 5), m=st.integers(1, 6), n=st.integers(1, 6), decay=st.floats(0, 1), seed=st.integers(0, 99)
)
def test_the_optimum_is_balanced_and_no_other_weights_are_better(
    depth: int, m: int, n: int, decay: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(m, n, dtype=torch.float64, generator=generator)
    values, weights = decay_optimum(target, depth, decay)
    torch.testing.assert_close(torch.linalg.svdvals(_product(weights)), values)
    torch.testing.assert_close(decay_penalty(weights), least_decay(_product(weights), depth), rtol=1e-6, atol=1e-8)
    if depth > 1:
        assert imbalance(weights).max() < 1e-9
    best = _objective(weights, target, decay)
    for scale in (0.0, 1e-3, 0.1, 1.0):
        others = [W + scale * torch.randn(W.shape, dtype=W.dtype, generator=generator) for W in weights]
        assert _objective(others, target, decay) >= best - 1e-9
    assert _objective([0 * W for W in weights], target, decay) >= best - 1e-9


def test_least_decay_is_the_nuclear_norm_of_two_layers_and_differentiable(matrix: Tensor) -> None:
    torch.testing.assert_close(least_decay(matrix, 2), nuclear_norm(matrix))
    W = torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64)).requires_grad_()
    least_decay(W, 4).backward()  # 2 Σ √σ
    assert W.grad is not None
    torch.testing.assert_close(W.grad.diagonal(), torch.tensor([0.5, 1.0], dtype=torch.float64))


def test_any_factors_cost_at_least_the_least_decay(generator: torch.Generator) -> None:
    weights = [torch.randn(5, 5, dtype=torch.float64, generator=generator) for _ in range(3)]
    assert decay_penalty(weights) > least_decay(_product(weights), 3)


def test_factors_keep_the_targets_dtype() -> None:
    found = decay_optimum(PAPER.bfloat16(), 3, 0.1)
    assert {W.dtype for W in found.weights} == {torch.bfloat16}
    assert found.values.dtype == torch.float32


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="depth"):
        decay_optimum(PAPER, 0, 0.1)
    with pytest.raises(ValueError, match="decay must not be negative"):
        decay_optimum(PAPER, 2, -0.1)
    with pytest.raises(ValueError, match="target must be one matrix"):
        decay_optimum(PAPER[0], 2, 0.1)
    with pytest.raises(ValueError, match="weights is empty"):
        decay_penalty([])
    with pytest.raises(ValueError, match=r"first layer first.*\(2, 3\)"):
        imbalance([torch.ones(2, 3), torch.ones(2, 3)])
