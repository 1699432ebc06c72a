"""Tied weights: an adapter acts where it is named, the other places keep the base weight, and that is said."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from eckart.adapters import adapt
from eckart.adapters.layers.place import places
from families import families


def llama() -> tuple[nn.Module, Any]:
    model, batches = families()["llama"]()
    return model, batches[0]


def stirred(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
    return model


def test_an_adapted_embedding_warns_of_the_head_that_is_tied_to_it_and_the_head_keeps_the_base_weight() -> None:
    model, _ = llama()
    base = model.lm_head.weight
    with pytest.warns(
        UserWarning, match=r"model.embed_tokens shares its weight with lm_head: .* keeps the base weight"
    ):
        adapt(model, rank=2, targets="embed_tokens")
    stirred(model)
    assert list(places(model)) == ["model.embed_tokens"]
    assert places(model)["model.embed_tokens"].tied == ("lm_head",)
    assert model.lm_head.weight is base
    assert model.model.embed_tokens.base.weight is base
    x = torch.randn(2, 24)
    assert torch.equal(model.lm_head(x), x @ base.T)


def test_an_adapted_head_leaves_the_embedding_that_is_tied_to_it_alone() -> None:
    model, batch = llama()
    table = model.model.embed_tokens
    with pytest.warns(UserWarning, match="lm_head shares its weight with model.embed_tokens"):
        adapt(model, rank=2, targets="lm_head")
    assert list(places(model)) == ["lm_head"]
    assert places(model)["lm_head"].kind == "linear"
    assert model.model.embed_tokens is table
    plain = model(**batch).logits
    assert not torch.allclose(stirred(model)(**batch).logits, plain, atol=1e-3)


def test_both_places_of_a_tied_weight_can_be_adapted_each_with_its_own() -> None:
    model, _ = llama()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapt(model, rank={"lm_head": 3, "model.embed_tokens": 2})
    held = places(model)
    assert {name: place.live()[0].rank for name, place in held.items()} == {"model.embed_tokens": 2, "lm_head": 3}
    assert held["lm_head"].base.weight is held["model.embed_tokens"].base.weight


def test_a_second_adapter_finds_the_places_that_the_first_one_made() -> None:
    model, _ = llama()
    with pytest.warns(UserWarning, match="keeps the base weight"):
        adapt(model, rank=2, targets="lm_head", name="one")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapt(model, rank=2, targets=["lm_head", "embed_tokens"], name="two")
    assert {name: list(place.adapters) for name, place in places(model).items()} == {
        "lm_head": ["one", "two"],
        "model.embed_tokens": ["two"],
    }


def test_neither_is_adapted_by_default() -> None:
    model, _ = llama()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapt(model, rank=2)
        adapt(model, rank=2, name="again")
    assert not {"lm_head", "model.embed_tokens"} & set(places(model))


def test_one_layer_at_two_paths_is_adapted_at_both_without_a_warning_and_put_back_at_both() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapt(model, rank=2)
    assert model[0] is model[2]
    assert list(places(model)) == ["0", "3"]
    assert places(model)["0"].aliases == ("2",)
    x = torch.randn(3, 4)
    stirred(model)
    W = shared.weight + model[0].live()[0].delta()
    expected = model[3]((x @ W.T + shared.bias).relu() @ W.T + shared.bias)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    place = model[0]
    place.adapters.clear()
    place.leave(model)
    assert model[0] is shared
    assert model[2] is shared
