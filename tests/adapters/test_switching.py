"""Several adapters on one model: which act, which train, what a switch costs, and what is left when they are gone."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart.adapters import METHODS, activate, adapt, disabled, names
from eckart.adapters.layers.place import places
from eckart.adapters.using.switching import remove, rename
from eckart.nn.batches import run_model
from families import families

FAMILIES = ("sequential", "conv1d", "conv2d", "gpt2", "llama", "bert", "vit")


def output(model: nn.Module, batch: Any) -> Tensor:
    """The tensor that a model gives."""
    result = run_model(model, batch)
    return getattr(result, "logits", result).detach()


def stirred(model: nn.Module, name: str, seed: int, method: str = "lora", **options: Any) -> None:
    """Put an adapter on the model whose Δ is not zero."""
    adapt(model, method, rank=2, name=name, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for place in places(model, name).values():
            for parameter in place.held[name].trained():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def two(family: str) -> tuple[nn.Module, Any]:
    """A model with adapters "law" and "code", the second on fewer matrices, and a batch."""
    model, batches = families()[family]()
    stirred(model, "law", 1, exclude="depthwise" if family == "conv2d" else None)
    stirred(model, "code", 2, targets=list(places(model))[::2])
    return model, batches[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_adapter_acts_as_if_it_were_alone(family: str) -> None:
    model, batch = two(family)
    activate(model, "law")
    with_both = output(model, batch)
    remove(model, "code")
    torch.testing.assert_close(output(model, batch), with_both, atol=1e-6, rtol=1e-5)


def test_two_active_adapters_add_up_where_a_matrix_has_both() -> None:
    model, batch = two("sequential")
    activate(model, "law", "code")
    place = places(model)["0"]
    law, code = (place.held[name].delta() for name in ("law", "code"))
    W = place.weight_matrix() + law + code
    torch.testing.assert_close(place(batch), batch @ W.mT + place.base.bias, atol=1e-5, rtol=1e-5)


def test_what_acts_trains_and_nothing_else_does() -> None:
    model, _ = two("llama")
    for active in (("law",), ("code",), ("law", "code"), ()):
        activate(model, *active)
        trains = {key.split(".adapters.")[1].split(".")[0] for key, p in model.named_parameters() if p.requires_grad}
        assert trains == set(active)
        assert all(p.requires_grad == (name in active) for name, p in _factors(model))


def _factors(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for place in places(model).values() for name, a in place.held.items() for p in a.trained()]


def test_an_adapter_whose_gradients_were_switched_off_by_hand_trains_again_when_activated() -> None:
    model, _ = two("sequential")
    model.requires_grad_(False)
    activate(model, "code")
    assert [p.requires_grad for name, p in _factors(model) if name == "code"] == [True] * 4


def test_an_optimizer_goes_on_through_switches_and_a_new_name() -> None:
    model, batch = two("sequential")
    optimizer = torch.optim.AdamW([p for _, p in _factors(model)], lr=0.1)
    rename(model, "code", "tests")
    for name in ("law", "tests", "law"):
        activate(model, name)
        before = {key: p.detach().clone() for key, p in model.named_parameters()}
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
        moved = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
        assert moved
        assert all(f".adapters.{name}." in key for key in moved)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_removal_leaves_the_model_as_it_was_before(family: str, method: str) -> None:
    plain, batches = families()[family]()
    model, _ = families()[family]()
    options = {"batches": batches, "loss": lambda out, batch: getattr(out, "logits", out).square().mean()}
    options = options if METHODS[method].wanted else {}
    if "original" in METHODS[method].options:
        options["original"] = dict(plain.named_parameters())
    exclude = "depthwise" if family == "conv2d" else None
    stirred(model, "one", 1, method, exclude=exclude, **options)
    stirred(model, "other", 2, exclude=exclude)
    remove(model, "one")
    assert names(model) == ["other"]
    remove(model, "other")
    assert names(model) == []
    assert [(key, type(m)) for key, m in model.named_modules()] == [(key, type(m)) for key, m in plain.named_modules()]
    assert list(model.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert torch.equal(output(model, batches[0]), output(plain, batches[0]))


def test_removing_the_active_adapter_leaves_the_others_inactive() -> None:
    model, batch = two("sequential")
    activate(model, "code")
    with disabled(model):
        base = model(batch)
    remove(model, "code")
    assert torch.equal(model(batch), base)


def test_a_whole_module_goes_with_its_adapter_and_takes_its_new_name() -> None:
    model, _ = families()["sequential"]()
    stirred(model, "law", 1, modules_to_save="4")
    stirred(model, "code", 2, modules_to_save="4")
    rename(model, "code", "tests")
    assert (model[4].active, list(model[4].copies)) == ("tests", ["law", "tests"])
    remove(model, "tests")
    assert model[4].active is None
    remove(model, "law")
    assert type(model[4]) is nn.Linear


def test_outputs_that_wait_for_a_sibling_are_not_handed_out_after_a_switch() -> None:
    layers = nn.ModuleDict({"q": nn.Linear(6, 6), "v": nn.Linear(6, 6)})
    stirred(layers, "law", 1)
    stirred(layers, "code", 2)
    x = torch.randn(3, 6)
    for _ in range(2):  # q and v become one group
        layers["q"](x), layers["v"](x)
    expected = layers["v"](x.clone())
    activate(layers, "law")
    layers["q"](x)
    activate(layers, "code")
    torch.testing.assert_close(layers["v"](x), expected)


@pytest.mark.parametrize("call", [remove, activate, lambda model, name: rename(model, name, "new")])
def test_an_unknown_name_is_answered_with_the_closest(call: Callable[[nn.Module, str], None]) -> None:
    model, _ = two("sequential")
    with pytest.raises(ValueError, match="no adapter 'laws'; closest: law"):
        call(model, "laws")


def test_a_name_in_use_is_not_given_twice() -> None:
    model, _ = two("sequential")
    with pytest.raises(ValueError, match="new: the model has an adapter 'law' already"):
        rename(model, "code", "law")
    with pytest.raises(ValueError, match=r"new: 'a\.b' is no name"):
        rename(model, "code", "a.b")
    assert names(model) == ["law", "code"]


def test_two_magnitudes_on_one_matrix_are_refused_and_change_nothing() -> None:
    model, _ = two("sequential")
    stirred(model, "dora", 3, "dora")
    with pytest.raises(ValueError, match="dora trained a magnitude of 0"):
        activate(model, "law", "dora")
    assert all(place.active == ("dora",) for place in places(model).values())


def test_a_switch_takes_milliseconds_for_hundreds_of_layers() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(300)))
    for name in ("law", "code"):
        adapt(model, rank=1, name=name)
    times = []
    for turn in range(40):
        start = time.perf_counter()
        activate(model, ("law", "code")[turn % 2])
        times.append(time.perf_counter() - start)
    assert min(times) < 3 * 2e-3  # the bar is 1 ms per 100 layers; twice that here, as other tests run beside this one
