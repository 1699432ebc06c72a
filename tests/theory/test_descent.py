"""Gradient descent on a product of matrices, against autograd."""

from itertools import islice, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eckart.theory import completion, descend, factorization, first_gradient, orthogonal_weights, product, regression

widths = st.lists(st.integers(1, 6), min_size=2, max_size=6)


def _problem(sizes: list[int], seed: int) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(m, n, generator=generator, dtype=torch.float64) / n for n, m in pairwise(sizes)]
    return weights, torch.randn(sizes[-1], sizes[0], generator=generator, dtype=torch.float64)


@given(widths, st.integers(0, 100))
@settings(max_examples=25)
def test_steps_are_those_of_autograd_with_a_rate_for_each_layer_and_decay(sizes: list[int], seed: int) -> None:
    weights, target = _problem(sizes, seed)
    rates = [0.01 * (index + 1) for index in range(len(weights))]
    expected = [W.clone().requires_grad_() for W in weights]
    optimizer = torch.optim.SGD(
        [{"params": [W], "lr": lr} for W, lr in zip(expected, rates, strict=True)], weight_decay=0.1
    )
    for here, loss in islice(descend(weights, factorization(target), rate=rates, decay=0.1), 4):
        objective = (product(expected) - target).square().sum() / 2
        torch.testing.assert_close(loss, objective.detach())
        for W, V in zip(here, expected, strict=True):
            torch.testing.assert_close(W, V.detach())
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()


@given(widths, st.integers(0, 100))
@settings(max_examples=25)
def test_the_first_gradient_is_that_of_autograd(sizes: list[int], seed: int) -> None:
    weights, target = _problem(sizes, seed)
    leaf = weights[0].clone().requires_grad_()
    ((product([leaf, *weights[1:]]) - target).square().sum() / 2).backward()
    assert leaf.grad is not None
    torch.testing.assert_close(first_gradient(weights, factorization(target)), leaf.grad)


def test_the_start_is_left_as_it_is_and_the_list_changes_in_place() -> None:
    weights, target = _problem([3, 4, 2], 0)
    before = [W.clone() for W in weights]
    course = descend(weights, factorization(target), rate=0.05)
    first, _ = next(course)
    second, _ = next(course)
    assert all(torch.equal(W, V) for W, V in zip(weights, before, strict=True))
    assert all(W is V for W, V in zip(first, second, strict=True))
    assert not torch.equal(second[0], before[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_of_the_weights_stays(dtype: torch.dtype) -> None:
    weights = orthogonal_weights([4, 4, 4], 1.0, dtype=dtype)
    course = list(islice(descend(weights, factorization(product(weights) / 2), rate=0.1), 20))
    here, loss = course[-1]
    assert {W.dtype for W in here} == {loss.dtype} == {dtype}
    assert loss < 0.01


def test_a_network_on_data_learns_it() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(4, 30, generator=generator, dtype=torch.float64) / 30**0.5
    Y = torch.randn(2, 4, generator=generator, dtype=torch.float64) @ X
    weights = orthogonal_weights([4, 6, 2], 0.5, generator=generator)
    losses = [loss.item() for _, loss in islice(descend(weights, regression(X, Y), rate=0.1), 1000)]
    assert losses[-1] < 1e-8 * losses[0]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(losses))


@given(widths, st.floats(1e-3, 10))
@settings(max_examples=25)
def test_starts_are_semi_orthogonal_times_eps_and_chain(sizes: list[int], eps: float) -> None:
    weights = orthogonal_weights(sizes, eps)
    assert [tuple(W.shape) for W in weights] == [(m, n) for n, m in pairwise(sizes)]
    for W in weights:
        gram = W @ W.mT if W.shape[0] <= W.shape[1] else W.mT @ W
        torch.testing.assert_close(gram, eps**2 * torch.eye(len(gram), dtype=W.dtype))


def test_starts_are_reproducible_and_differ_between_layers() -> None:
    first, second = orthogonal_weights([4, 4, 4], 1.0), orthogonal_weights([4, 4, 4], 1.0)
    assert all(torch.equal(W, V) for W, V in zip(first, second, strict=True))
    assert not torch.allclose(first[0], first[1])
    other = orthogonal_weights([4, 4, 4], 1.0, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(first[0], other[0])


@pytest.mark.parametrize(
    ("sizes", "eps", "message"), [([3], 1.0, "widths"), ([3, 0], 1.0, "widths"), ([3, 3], 0.0, "eps")]
)
def test_starts_that_make_no_sense_are_named(sizes: list[int], eps: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        orthogonal_weights(sizes, eps)


@pytest.mark.parametrize(("rate", "decay", "message"), [([0.1], 0.0, "rate has 1"), (0.1, -0.1, "decay")])
def test_rates_and_decay_that_make_no_sense_are_named(rate: float | list[float], decay: float, message: str) -> None:
    weights, target = _problem([3, 3, 3], 0)
    with pytest.raises(ValueError, match=message):
        next(descend(weights, factorization(target), rate=rate, decay=decay))


def test_layers_that_do_not_chain_and_a_target_of_another_shape_are_named() -> None:
    target = torch.ones(1, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"\(3, 3\), \(3, 2\)\] do not follow on one another"):
        next(
            descend(
                [*orthogonal_weights([3, 3], 1.0), *orthogonal_weights([2, 3], 1.0)], factorization(target), rate=0.1
            )
        )
    with pytest.raises(ValueError, match=r"gives \(3, 3\) and the target is \(1, 3\)"):  # which broadcasting would fit
        next(descend(orthogonal_weights([3, 3, 3], 1.0), factorization(target), rate=0.1))
    with pytest.raises(ValueError, match=r"gives \(3, 3\) and the target is \(1, 3\)"):
        next(descend(orthogonal_weights([3, 3, 3], 1.0), completion(target, target > 0), rate=0.1))
