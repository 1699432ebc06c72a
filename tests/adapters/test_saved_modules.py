"""Modules trained whole: one copy for each adapter, switched with it; the base stays bit for bit."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart.adapters import activate, adapt, disabled
from eckart.adapters.layers.place import places
from eckart.adapters.layers.saved_modules import modules_before, saved_modules
from eckart.nn.batches import run_model
from families import families


def output(model: nn.Module, batch: Any) -> Tensor:
    result = run_model(model, batch)
    return getattr(result, "logits", result).detach()


def stir(model: nn.Module, seed: int = 5) -> None:
    """Give everything that trains other values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_a_saved_module_trains_whole_and_the_base_stays() -> None:
    plain, batches = families()["vit"]()
    model, _ = families()["vit"]()
    done = adapt(model, rank=2, modules_to_save="classifier")
    assert done.settings.modules_to_save == ("classifier",)
    assert "classifier" not in places(model)
    torch.testing.assert_close(output(model, batches[0]), output(plain, batches[0]))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"classifier.copies.default.weight", "classifier.copies.default.bias"} < trained
    stir(model)
    assert not torch.allclose(output(model, batches[0]), output(plain, batches[0]))
    with disabled(model):
        assert torch.equal(output(model, batches[0]), output(plain, batches[0]))
    assert torch.equal(model.classifier.original.weight, plain.classifier.weight)


def test_each_adapter_has_its_own_copy_and_a_switch_switches_it() -> None:
    model, batches = families()["vit"]()
    adapt(model, rank=2, modules_to_save="classifier", name="a")
    stir(model, 1)
    first = output(model, batches[0])
    adapt(model, rank=2, modules_to_save="classifier", name="b")
    stir(model, 2)
    second = output(model, batches[0])
    adapt(model, rank=2, targets="q_proj", name="c")
    activate(model, "a", "c")  # c trains no module whole
    assert saved_modules(model)["classifier"].active == "a"
    activate(model, "b")
    torch.testing.assert_close(output(model, batches[0]), second)
    activate(model, "a")
    torch.testing.assert_close(output(model, batches[0]), first)
    assert {n for n, p in model.named_parameters() if p.requires_grad and "copies" in n} == {
        "classifier.copies.a.weight",
        "classifier.copies.a.bias",
    }
    with pytest.raises(ValueError, match="a and b each trained classifier whole"):
        activate(model, "a", "b")
    torch.testing.assert_close(output(model, batches[0]), first)


def test_names_before_are_those_of_the_model_that_nothing_adapts() -> None:
    plain, _ = families()["vit"]()
    model, _ = families()["vit"]()
    adapt(model, rank=2, modules_to_save="classifier")
    assert [n for n, _ in modules_before(model)] == [n for n, _ in plain.named_modules(remove_duplicate=False)]


def test_what_a_module_trained_whole_holds_is_no_target_of_another_adapter() -> None:
    model, _ = families()["vit"]()
    adapt(model, rank=2, modules_to_save="classifier", name="a")
    adapt(model, rank=2, name="b")
    assert all(not name.startswith("classifier") for name in places(model))


REFUSED = {
    "unknown": ("clasifier", "modules_to_save: .clasifier. matches none.*classifier"),
    "adapted": ("q_proj", "has adapters in it"),
    "empty": ("dropout", "no parameters to train"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_module_that_cannot_be_trained_whole_is_refused_by_name(case: str) -> None:
    model, _ = families()["vit"]()
    adapt(model, rank=2, name="first")
    before = set(model.state_dict())
    pattern, told = REFUSED[case]
    with pytest.raises(ValueError, match=told):
        adapt(model, rank=2, modules_to_save=pattern, name="second")
    assert set(model.state_dict()) == before


def test_a_tied_weight_is_refused_by_name() -> None:
    model, _ = families()["llama"]()
    with pytest.raises(ValueError, match=r"lm_head shares a weight with model\.embed_tokens\.weight"):
        adapt(model, rank=2, modules_to_save="lm_head")
    assert not places(model)
