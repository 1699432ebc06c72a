"""The second-order penalty: exact where the loss is quadratic in the mask, measured against Monte Carlo elsewhere."""

import pytest
import torch
from torch import nn

from eckart.regularizers import (
    AdaptiveDropout,
    DropBlock,
    DropBlock2d,
    DropConnect,
    Dropout,
    adaptive_rate,
    compare_penalties,
    dropblock_penalty,
    dropconnect_penalty,
    dropout_penalty,
    monte_carlo_penalty,
    odds,
    second_order_penalty,
)


def _squared(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return (model(batch[0]) - batch[1]).square().sum()


def _cross_entropy(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@pytest.fixture
def layers() -> tuple[nn.Linear, nn.Linear]:
    return nn.Linear(5, 4).double(), nn.Linear(4, 3).double()


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(7, 5).double(), torch.randn(7, 3).double()


@pytest.mark.parametrize("law", ["dropout", "torch", "adaptive", "block", "connect"])
def test_it_is_exact_for_a_linear_network_with_squared_loss(law, layers, batch) -> None:
    first, second = layers
    first.bias.data.zero_()
    U, V, X = second.weight, first.weight.mT, batch[0].mT
    model, expected = {
        "dropout": lambda: (nn.Sequential(first, Dropout(0.4), second), dropout_penalty(U, V, 0.4, inputs=X)),
        "torch": lambda: (nn.Sequential(first, nn.Dropout(0.4), second), dropout_penalty(U, V, 0.4, inputs=X)),
        "adaptive": lambda: (
            nn.Sequential(first, AdaptiveDropout(0.4), second),
            dropout_penalty(U, V, adaptive_rate(0.4, 4), inputs=X),
        ),
        "block": lambda: (nn.Sequential(first, DropBlock(0.4, 2), second), dropblock_penalty(U, V, 0.4, 2, inputs=X)),
        "connect": lambda: (
            nn.Sequential(first, DropConnect(second, 0.4)),
            dropconnect_penalty(U, V, 0.4, inputs=X),
        ),
    }[law]()
    torch.testing.assert_close(second_order_penalty(model, _squared, batch), expected)


def test_it_is_half_the_odds_times_the_squared_features_times_the_hessians_diagonal(batch) -> None:
    head = nn.Sequential(nn.Tanh(), nn.Linear(5, 3)).double()
    model = nn.Sequential(Dropout(0.3), head)
    labels = batch[1].argmax(1)
    hessian = torch.autograd.functional.hessian(lambda h: _cross_entropy(head, (h, labels)), batch[0])
    diagonal = hessian.flatten(2).flatten(0, 1).diagonal().view_as(batch[0])
    expected = odds(0.3) / 2 * (batch[0].square() * diagonal).sum()
    torch.testing.assert_close(second_order_penalty(model, _cross_entropy, (batch[0], labels)), expected)


def _mlp(rate: float) -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 16), nn.GELU(), Dropout(rate), nn.Linear(16, 16), nn.GELU(), nn.Dropout(rate), nn.Linear(16, 3)
    )


def test_its_error_against_monte_carlo_is_small_at_small_rates_and_shown() -> None:
    batch = (torch.randn(30, 5), torch.randint(3, (30,)))
    for scale in (3.0,):
        model = _mlp(0.02)
        model[-1].weight.data *= scale
        comparison = compare_penalties(model, _cross_entropy, batch, samples=4000)
        slack = 4 * comparison.standard_error + 0.1 * comparison.monte_carlo
        assert abs(comparison.second_order - comparison.monte_carlo) < slack
        assert "second order" in str(comparison)
        assert "±" in str(comparison)


def test_probes_estimate_the_exact_diagonal_and_probe_more_come_closer(layers, batch) -> None:
    model = nn.Sequential(layers[0], nn.Tanh(), Dropout(0.4), layers[1])
    exact = second_order_penalty(model, _squared, batch)
    estimate = second_order_penalty(model, _squared, batch, probes=400)
    torch.testing.assert_close(estimate, exact, rtol=0.1, atol=0)


def test_it_can_be_trained_on(layers, batch) -> None:
    model = nn.Sequential(layers[0], nn.Tanh(), Dropout(0.4), layers[1])
    penalty = second_order_penalty(model, _squared, batch)
    (_squared(model.eval(), batch) + penalty).backward()
    weight = layers[1].weight
    with torch.no_grad():
        before, step = penalty.item(), 1e-6
        gradient = torch.autograd.grad(
            second_order_penalty(model.train(), _squared, batch), weight, retain_graph=False
        )[0]
        weight += step * gradient / gradient.norm()
        after = second_order_penalty(model, _squared, batch).item()
    assert (after - before) / step == pytest.approx(gradient.norm().item(), rel=1e-3)


def test_modes_generators_hooks_and_random_state_are_as_before(batch) -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(5), Dropout(0.5, generator=generator), nn.Linear(5, 3)).double()
    model[0].eval()
    before = [module.training for module in model.modules()]
    state, statistics = torch.get_rng_state(), model[0].running_mean.clone()
    compare_penalties(model, _squared, batch, samples=5)
    assert [module.training for module in model.modules()] == before
    assert model[1].generator is generator
    assert not model[1]._forward_hooks
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model[0].running_mean, statistics)


def test_monte_carlo_seeds_no_device_that_the_model_is_not_on(layers, batch, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a GPU's random state was set"))
    monte_carlo_penalty(nn.Sequential(layers[0], Dropout(0.4), layers[1]), _squared, batch, samples=2)


def test_features_without_a_dimension_beside_the_samples_are_seen(layers, batch) -> None:
    loss = lambda model, batch: model(batch[0]).square().sum()  # noqa: E731
    one = nn.Linear(5, 1).double()
    flat, column = nn.Sequential(one, nn.Flatten(0), Dropout(0.4)), nn.Sequential(one, Dropout(0.4))
    torch.testing.assert_close(second_order_penalty(flat, loss, batch), second_order_penalty(column, loss, batch))


def test_a_mask_on_what_all_samples_share_needs_probes() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place, self.mask, self.head = nn.Parameter(torch.randn(5, 3)), nn.Dropout(0.3), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x + self.mask(self.place)).sum(1)

    torch.manual_seed(0)
    model, batch = Positions(), torch.randn(6, 5, 3)
    loss = lambda model, x: model(x).square().sum()  # noqa: E731
    with pytest.raises(ValueError, match=r"vary as \(5, 3\).*\[6\] samples.*probes="):
        second_order_penalty(model, loss, batch)
    mean, error = monte_carlo_penalty(model, loss, batch, samples=4000)
    assert abs(second_order_penalty(model, loss, batch, probes=1000) - mean) < 4 * error + 0.1 * mean


def test_monte_carlo_repeats_and_agrees_with_the_formula_within_its_error(layers, batch) -> None:
    model = nn.Sequential(layers[0], Dropout(0.4), layers[1])
    first, again = (monte_carlo_penalty(model, _squared, batch, samples=2000) for _ in range(2))
    assert torch.equal(first[0], again[0])
    exact = second_order_penalty(model, _squared, batch)
    assert abs(first[0] - exact) < 4 * first[1]


def test_monte_carlo_takes_every_kind_of_mask() -> None:
    model = nn.Sequential(DropBlock2d(0.3, 2), nn.Flatten(), nn.Linear(16, 2))
    images, labels = torch.randn(4, 1, 4, 4), torch.tensor([0, 1, 0, 1])
    mean, error = monte_carlo_penalty(model, _cross_entropy, (images, labels), samples=50)
    assert error > 0
    assert mean.isfinite()
    with pytest.raises(ValueError, match="only monte_carlo_penalty"):
        second_order_penalty(model, _cross_entropy, (images, labels))


def test_a_mask_that_is_off_or_that_the_loss_does_not_see_adds_nothing(layers, batch) -> None:
    assert second_order_penalty(nn.Sequential(layers[0], Dropout(0.0), layers[1]), _squared, batch).item() == 0
    linear = nn.Sequential(layers[0], Dropout(0.5), layers[1])
    for probes in (None, 2):
        assert (
            second_order_penalty(linear, lambda model, batch: model(batch[0]).sum(), batch, probes=probes).item() == 0
        )


def test_a_model_without_masks_and_too_few_samples_are_named(layers, batch) -> None:
    with pytest.raises(ValueError, match="has no mask module"):
        second_order_penalty(nn.Sequential(*layers), _squared, batch)
    with pytest.raises(ValueError, match="has no mask module"):
        monte_carlo_penalty(nn.Sequential(*layers), _squared, batch)
    with pytest.raises(ValueError, match="probes must be at least 1"):
        second_order_penalty(nn.Sequential(Dropout(0.5), *layers), _squared, batch, probes=0)
    with pytest.raises(ValueError, match="samples must be at least 2"):
        monte_carlo_penalty(nn.Sequential(Dropout(0.5), *layers), _squared, batch, samples=1)
