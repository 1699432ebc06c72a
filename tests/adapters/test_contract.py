"""The law of every row of METHODS, on every family of models: what an adapter does, and what it leaves alone."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart.adapters import METHODS, adapt, disabled
from eckart.adapters.layers.adapted_weight import AdaptedWeight
from eckart.adapters.layers.place import places
from eckart.nn.batches import run_model
from families import families, stir

FAMILIES = ("sequential", "conv1d", "conv2d", "encoder", "gpt2", "llama", "mixtral", "bert", "vit")
TARGETS = {"mixtral": ("*_proj",)}  # its experts too, which are left out by default


def output(model: nn.Module, batch: Any) -> Tensor:
    """The tensor that a model gives."""
    result = run_model(model, batch)
    return getattr(result, "logits", result)


def adapted(family: str, method: str, **options: Any) -> tuple[nn.Module, list[Any]]:
    """A family's model with adapters of a method, its batches given to starts that want them."""
    model, batches = families()[family]()
    if METHODS[method].wanted:
        options.setdefault("batches", batches)
        options.setdefault("loss", lambda out, batch: getattr(out, "logits", out).square().mean())
    if "original" in METHODS[method].options:  # weights that the model had before it was quantised, say
        options.setdefault("original", {name: p * (1 + 0.1 * p.sin()) for name, p in model.named_parameters()})
    adapt(model, method, rank=2, targets=TARGETS.get(family), **options)
    return model, batches


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_an_adapted_model_starts_as_it_was_unless_its_method_says_that_it_moves(family: str, method: str) -> None:
    plain, batches = families()[family]()
    model, _ = adapted(family, method)
    if METHODS[method].moves:
        assert not torch.equal(output(model, batches[0]), output(plain, batches[0]))
        return
    torch.testing.assert_close(output(model, batches[0]), output(plain, batches[0]), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_disabled_is_the_base_bit_for_bit(family: str, method: str) -> None:
    plain, batches = families()[family]()
    plain.requires_grad_(False)  # or torch's encoder layers take another way through their products
    model, _ = adapted(family, method)
    stir(model)
    assert not torch.equal(output(model, batches[0]), output(plain, batches[0]))
    with disabled(model):
        assert torch.equal(output(model, batches[0]), output(plain, batches[0]))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_only_the_adapters_parameters_move(family: str, method: str) -> None:
    model, batches = adapted(family, method)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        output(model, batches[0]).square().mean().backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all(".adapters.default." in name for name in moved)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_fused_and_grouped_is_what_the_plain_operations_give(family: str, method: str) -> None:
    model, batches = adapted(family, method)
    stir(model)
    output(model, batches[0])  # the groups are found
    got = output(model, batches[1])
    got.square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    plain, _ = adapted(family, method)
    stir(plain)
    for place in places(plain).values():
        place._fusable = lambda live, x: False  # type: ignore[method-assign]
    expected = output(plain, batches[1])
    expected.square().mean().backward()
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    for name, p in plain.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(gradients[name], p.grad, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_the_dense_weight_with_its_change_gives_the_same_output(family: str, method: str) -> None:
    model, batches = adapted(family, method)
    stir(model)
    expected = output(model, batches[0])
    with torch.no_grad():
        for place in places(model).values():
            (adapter,) = place.live()
            W = place.weight_matrix() + adapter.delta().to(place.weight_matrix().dtype)
            if adapter.magnitude is not None:
                W = adapter.magnitude.unsqueeze(-1) * W / W.norm(dim=-1, keepdim=True)
            weight = place.original() if isinstance(place, AdaptedWeight) else place.base.weight
            weight.copy_((W.mT if place.transposed else W).reshape(weight.shape))
    with disabled(model):
        torch.testing.assert_close(output(model, batches[0]), expected, atol=2e-4, rtol=1e-3)
