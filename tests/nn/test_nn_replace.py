"""nn.replace: one place swaps a module, and says why it will not."""

import copy

import pytest
import torch
from torch import nn

from eckart.nn import FactoredLinear, matrices, replace
from families import families

FAMILIES = families()


@pytest.mark.parametrize("family", ["sequential", "encoder", "gpt2", "llama", "mixtral", "bert", "vit"])
def test_a_model_keeps_its_outputs_when_its_linears_become_full_rank_factors(family):
    model, batches = FAMILIES[family]()
    changed = copy.deepcopy(model)
    for matrix in matrices(changed):
        if matrix.kind in ("linear", "conv1d"):
            replace(changed, matrix.name, FactoredLinear.from_linear(matrix.module, min(matrix.shape)))
    with torch.no_grad():
        for batch in batches:
            torch.testing.assert_close(_logits(changed, batch), _logits(model, batch), rtol=1e-4, atol=1e-5)


def _logits(model: nn.Module, batch: object) -> torch.Tensor:
    output = model(**batch) if isinstance(batch, dict) else model(batch)
    return output if isinstance(output, torch.Tensor) else output.logits


def test_the_old_module_comes_back_and_the_new_one_takes_its_mode():
    model = nn.Sequential(nn.Linear(3, 3)).eval()
    old, new = model[0], nn.Dropout()
    assert replace(model, "0", new) is old
    assert model[0] is new
    assert not new.training


@pytest.mark.parametrize("name", ["model.embed_tokens", "lm_head"])
def test_a_tied_weight_is_not_untied_in_silence(name):
    other = {"model.embed_tokens": "lm_head.weight", "lm_head": "model.embed_tokens.weight"}[name]
    with pytest.raises(ValueError, match=f"shares a parameter or is itself shared with {other}"):
        replace(FAMILIES["llama"]()[0], name, nn.Identity())


def test_a_module_that_stands_in_two_places_is_not_replaced_in_one():
    shared = nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"shared with b\.weight, b\.bias"):
        replace(nn.ModuleDict({"a": shared, "b": shared}), "a", nn.Identity())


@pytest.mark.parametrize("name", ["layers.0.linear3", "", "layers.7.linear1"])
def test_an_unknown_name_is_an_error_that_gives_the_closest(name):
    with pytest.raises(ValueError, match="not a module of this TransformerEncoder; closest: layers"):
        replace(FAMILIES["encoder"]()[0], name, nn.Identity())


def test_a_parameter_is_told_from_a_module():
    with pytest.raises(ValueError, match=r"in_proj_weight' is a parameter, not a module"):
        replace(FAMILIES["encoder"]()[0], "layers.0.self_attn.in_proj_weight", nn.Identity())


def test_a_wrapper_that_keeps_a_tied_weight_may_take_its_place():
    model = FAMILIES["llama"]()[0]
    head = model.lm_head
    replace(model, "lm_head", nn.Sequential(head))
    assert model.lm_head[0].weight is model.model.embed_tokens.weight
    replace(model, "lm_head", head)
    assert model.lm_head is head
