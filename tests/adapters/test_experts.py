"""Weights without a layer of their own: experts, attention's one parameter, and what parents read but do not call."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from eckart.adapters import activate, adapt, disabled, names
from eckart.adapters.layers.adapted_weight import AdaptedWeight
from eckart.adapters.layers.place import places
from eckart.adapters.using.mixing import mixed
from eckart.nn import matrices
from families import families


def mixtral() -> tuple[nn.Module, Any]:
    model, batches = families()["mixtral"]()
    return model, batches[0]


def stirred(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return model


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the places whose W + Δ is formed."""
    formed: list[str] = []
    plain = AdaptedWeight.changed_weight

    def counting(self: AdaptedWeight, W: Tensor | None = None) -> Tensor:
        formed.append(self.name)
        return plain(self, W)

    monkeypatch.setattr(AdaptedWeight, "changed_weight", counting)
    return formed


def test_experts_are_left_out_by_default_and_said_so() -> None:
    model, _ = mixtral()
    adaptation = adapt(model, rank=2)
    assert set(adaptation.left_out) == {m.name for m in matrices(model) if m.kind == "experts"}
    assert all("experts" in reason for reason in adaptation.left_out.values())
    assert "4 left out" in str(adaptation)


def test_each_expert_has_factors_of_its_own_and_the_repr_says_what_it_costs() -> None:
    model, _ = mixtral()
    adapt(model, rank=2, targets="experts.down_proj")
    place = places(model)["model.layers.0.mlp.experts.down_proj"]
    (adapter,) = place.live()
    assert (adapter.B.shape, adapter.A.shape) == ((4, 24, 2), (4, 2, 40))
    assert "formed at each use: 3,840 numbers" in repr(place)
    assert place.read


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_an_experts_weight_is_formed_once_for_each_call(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = mixtral()
    model.set_experts_implementation(implementation)
    adapt(model, rank=2, targets="experts.*")
    stirred(model)
    formed = counted(monkeypatch)
    model(**batch)
    assert sorted(formed) == sorted(places(model))
    assert all(place._formed is None for place in places(model).values())


def test_an_error_inside_the_experts_does_not_leave_a_formed_weight_behind() -> None:
    model, batch = mixtral()
    adapt(model, rank=2, targets="experts.*")
    model.model.layers[0].mlp.experts.act_fn.register_forward_hook(lambda *_: 1 / 0)
    model.set_experts_implementation("eager")
    with pytest.raises(ZeroDivisionError):
        model(**batch)
    assert all(place._formed is None and not place._inside for place in places(model).values())


def test_gradients_come_also_where_the_weight_was_first_read_without_them() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.randn(2, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.up.sum()
            return x @ self.up[0].mT

    model = nn.ModuleDict({"experts": Experts()})
    adapt(model, rank=1, targets="up")
    model["experts"](torch.randn(2, 3)).sum().backward()
    ((_, place),) = places(model).items()
    assert place.live()[0].B.grad.abs().sum() > 0


def test_checkpointed_experts_give_the_same_gradients() -> None:
    gradients = []
    for checkpoint in (False, True):
        model, batch = mixtral()
        adapt(model, rank=2, targets=["experts.*", "q_proj"])
        stirred(model).train()
        if checkpoint:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(**batch).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_a_copy_of_the_model_has_places_of_its_own() -> None:
    model, batch = mixtral()
    adapt(model, rank=2, targets="experts.*")
    stirred(model)
    expected = model(**batch).logits
    twin = copy.deepcopy(model)
    activate(model)
    torch.testing.assert_close(twin(**batch).logits, expected, rtol=0, atol=0)
    assert not torch.equal(model(**batch).logits, expected)
    mine, other = places(model), places(twin)
    assert all(other[name]._owner[0] is not mine[name]._owner[0] for name in mine)


def test_two_adapters_on_experts_add_up_and_the_second_starts_from_the_frozen_weight() -> None:
    model, batch = mixtral()
    plain = model(**batch).logits
    adapt(model, rank=2, targets="experts.*", name="one")
    stirred(model)
    one = model(**batch).logits
    adapt(model, "pissa", rank=2, targets="experts.*", name="two")
    torch.testing.assert_close(model(**batch).logits, plain, rtol=1e-4, atol=1e-4)
    activate(model, "one", "two")
    torch.testing.assert_close(model(**batch).logits, one, rtol=1e-4, atol=1e-4)
    assert names(model) == ["one", "two"]


def test_leaving_puts_the_parameter_itself_back_in_its_place() -> None:
    model, batch = mixtral()
    before = {name: id(p) for name, p in model.named_parameters()}
    keys, kind, plain = list(model.state_dict()), type(model.model.layers[0].mlp.experts), model(**batch).logits
    adapt(model, rank=2, targets=["*_proj"])
    stirred(model)
    for place in list(places(model).values()):
        place.active = ()
        place.adapters.clear()
        place.leave(model)
    assert {name: id(p) for name, p in model.named_parameters()} == before
    assert list(model.state_dict()) == keys
    experts = model.model.layers[0].mlp.experts
    assert type(experts) is kind
    assert not experts._forward_hooks
    assert not experts._forward_pre_hooks
    assert torch.equal(model(**batch).logits, plain)


def test_a_parametrization_that_was_there_before_stays_when_the_adapter_leaves() -> None:
    class Double(nn.Module):
        def forward(self, W: Tensor) -> Tensor:
            return 2 * W

    attention = nn.MultiheadAttention(8, 2)
    parametrize.register_parametrization(attention, "in_proj_weight", Double())
    model, doubled = nn.ModuleDict({"attention": attention}), attention.in_proj_weight.detach().clone()
    adapt(model, rank=2, targets="in_proj_weight")
    stirred(model)
    assert not torch.equal(attention.in_proj_weight, doubled)
    (place,) = places(model).values()
    place.leave(model)
    assert torch.equal(attention.in_proj_weight, doubled)


def test_a_written_weight_is_the_one_that_is_used() -> None:
    model, batch = mixtral()
    adapt(model, rank=2, targets="experts.*")
    stirred(model)
    expected = model(**batch).logits
    for place in places(model).values():
        with torch.no_grad():
            place.write(place.changed_weight())
    with disabled(model):
        torch.testing.assert_close(model(**batch).logits, expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
def test_torch_s_own_attention_uses_its_adapters_in_every_mode(training: bool, gradients: bool) -> None:
    model, (x, _) = families()["encoder"]()
    model.train(training)
    adaptation = adapt(model, rank=2)
    plain = model(x)
    assert "layers.0.self_attn.in_proj_weight" in adaptation.settings.ranks
    for name in adaptation.settings.ranks:
        (adapter,) = places(model)[name].live()
        with torch.no_grad():
            adapter.B.copy_(torch.randn(adapter.B.shape, generator=torch.Generator().manual_seed(2)))
        with torch.set_grad_enabled(gradients):
            assert not torch.allclose(model(x), plain, atol=1e-4), name
        with torch.no_grad():
            adapter.B.zero_()


def test_the_fast_path_of_an_encoder_gives_what_the_slow_one_gives() -> None:
    model, (x, _) = families()["encoder"]()
    adapt(model, rank=2)
    stirred(model)
    with torch.no_grad():
        fast = model(x)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            slow = model(x)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


def test_dropout_and_bias_are_refused_where_a_weight_is_read_and_the_model_stays_as_it_was() -> None:
    model, _ = families()["encoder"]()
    with pytest.raises(ValueError, match=r"dropout: 0.1, but layers.0.self_attn.in_proj_weight, .*out_proj"):
        adapt(model, rank=2, dropout=0.1)
    with pytest.raises(ValueError, match=r"bias: layers.0.self_attn.in_proj_weight"):
        adapt(model, rank=2, bias=True)
    assert places(model) == {}
    adapt(model, rank=2, dropout=0.1, bias=True, exclude="*self_attn*")


def test_a_layer_whose_weight_is_read_gives_the_changed_one_and_its_bias() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Conv2d(3, 4, 2))
    adapt(model, rank=2, bias=True, magnitude=True)
    stirred(model)
    for layer, x in zip(model, (torch.randn(2, 5), torch.randn(2, 3, 4, 4)), strict=True):
        call = nn.functional.linear if x.ndim == 2 else nn.functional.conv2d
        torch.testing.assert_close(call(x, layer.weight, layer.bias), layer(x), rtol=1e-4, atol=1e-5)
    with disabled(model):
        assert model[0].weight is model[0].base.weight


def test_rows_of_a_batch_cannot_have_adapters_of_their_own_where_a_weight_is_read() -> None:
    model, _ = families()["encoder"]()
    adapt(model, rank=2, targets="out_proj")
    with (
        pytest.raises(ValueError, match=r"rows: default acts on layers.0.self_attn.out_proj"),
        mixed(model, ["default"]),
    ):
        pass
