"""Compression of features within classes (T7), against plain formulas and trained networks."""

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eckart.theory import (
    balanced_classes,
    compression_ratio,
    descend,
    geometric_decay,
    layerwise_within_between,
    linear_features,
    orthogonal_weights,
    product,
    regression,
    whiten,
    within_between,
)


def _by_hand(Z: Tensor, labels: Tensor) -> float:
    """tr Σ_W / tr Σ_B, one class after the other."""
    within, between = 0.0, 0.0
    for label in set(labels.tolist()):
        group = Z[labels == label]
        within += (group - group.mean(0)).square().sum().item()
        between += len(group) * (group.mean(0) - Z.mean(0)).square().sum().item()
    return within / between


@given(st.integers(2, 30), st.integers(1, 5), st.integers(0, 1000))
@settings(max_examples=25)
def test_the_spread_is_the_formulas_for_classes_of_any_sizes_and_labels(rows: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    Z = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    labels = torch.randint(-2, 3, (rows,), generator=generator) * 10
    labels[:2] = torch.tensor([7, 8])
    assert within_between(Z, labels).item() == pytest.approx(_by_hand(Z, labels), rel=1e-10)


def test_neither_shift_nor_scale_nor_rotation_changes_the_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    Z = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    labels = torch.arange(40) % 4
    [Q] = orthogonal_weights([6, 6], 3.0, generator=generator)
    torch.testing.assert_close(within_between(Z @ Q + 1e4, labels), within_between(Z, labels))


def test_features_of_a_convolution_are_flattened_and_half_precision_is_measured_in_single() -> None:
    Z = torch.randn(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20) % 2
    assert torch.equal(within_between(Z, labels), within_between(Z.flatten(1), labels))
    coarse = within_between(Z.bfloat16(), labels)
    assert coarse.dtype == torch.float32
    torch.testing.assert_close(coarse, within_between(Z, labels), rtol=0.01, atol=0)


def test_collapsed_classes_have_no_spread_and_equal_means_an_infinite_one() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    assert within_between(torch.tensor([[1.0], [1.0], [2.0], [2.0]]), labels) == 0
    assert within_between(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]), labels).isinf()


def test_layers_of_any_widths_and_kinds_are_measured_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(30, 8, generator=generator)
    hidden = torch.relu(X @ torch.randn(8, 5, generator=generator))
    labels = torch.arange(30) % 3
    expected = torch.stack([within_between(X, labels), within_between(hidden, labels)])
    assert torch.equal(layerwise_within_between([X, hidden], labels), expected)


def test_linear_features_are_the_inputs_of_each_layer() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = orthogonal_weights([4, 6, 5, 2], 0.5, generator=generator)
    X = torch.randn(4, 7, generator=generator, dtype=torch.float64)
    features = linear_features(weights, X)
    assert [tuple(Z.shape) for Z in features] == [(7, 4), (7, 6), (7, 5)]
    torch.testing.assert_close(weights[-1] @ features[-1].mT, product(weights) @ X)


@pytest.mark.parametrize(("depth", "eps"), [(3, 0.3), (5, 0.5)])
def test_a_trained_network_compresses_by_the_predicted_ratio(depth: int, eps: float) -> None:
    inputs, targets, labels = balanced_classes(40, 4, 10, generator=torch.Generator().manual_seed(1))
    inputs = whiten(inputs)
    start = orthogonal_weights([40] * depth + [4], eps)
    weights, loss = next(islice(descend(start, regression(inputs, targets), rate=0.03), 1000, None))
    fit = geometric_decay(layerwise_within_between(linear_features(weights, inputs), labels))
    assert loss < 1e-6
    assert fit.ratio.item() == pytest.approx(compression_ratio(eps, 10, depth), rel=0.05)
    assert fit.r_squared > 0.999


def test_a_geometric_decay_is_read_off_exactly_and_noise_lowers_r_squared() -> None:
    values = 5 * 0.3 ** torch.arange(6, dtype=torch.float64)
    ratio, straight = geometric_decay(values)
    assert ratio.item() == pytest.approx(0.3, rel=1e-12)
    assert straight.item() == pytest.approx(1.0, abs=1e-12)
    bent = values * torch.tensor([1, 3, 1, 3, 1, 3], dtype=torch.float64)
    y = bent.log()
    x = torch.arange(6, dtype=torch.float64)
    expected = torch.corrcoef(torch.stack((x, y)))[0, 1] ** 2
    assert geometric_decay(bent).r_squared.item() == pytest.approx(expected.item(), rel=1e-10)
    assert geometric_decay(torch.ones(3)).ratio == 1


def test_labels_and_values_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"labels \(3,\) must be \(N,\)"):
        within_between(torch.ones(4, 2), torch.arange(3))
    with pytest.raises(ValueError, match="labels hold 1 class"):
        within_between(torch.ones(4, 2), torch.zeros(4))
    with pytest.raises(ValueError, match="values must be two or more positive"):
        geometric_decay(torch.tensor([1.0]))
    with pytest.raises(ValueError, match="values must be two or more positive"):
        geometric_decay(torch.tensor([1.0, 0.0]))
