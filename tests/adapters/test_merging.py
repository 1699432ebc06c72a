"""Merged weights compute what the adapters did; a certificate says what rounding takes, and too much is refused."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart.adapters import METHODS, activate, adapt, names
from eckart.adapters.layers.place import places
from eckart.adapters.layers.saved_modules import saved_modules
from eckart.adapters.using.certifying import certify
from eckart.adapters.using.merging import merge
from eckart.nn.batches import run_model
from families import families

FAMILIES = ("sequential", "conv1d", "conv2d", "gpt2", "llama", "bert", "vit")


def output(model: nn.Module, batch: Any) -> Tensor:
    """The tensor that a model gives."""
    result = run_model(model, batch)
    return getattr(result, "logits", result).detach()


def stirred(model: nn.Module, name: str = "default", method: str = "lora", seed: int = 3, **options: Any) -> None:
    """Put an adapter on the model whose Δ is not zero."""
    adapt(model, method, rank=2, name=name, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for place in places(model, name).values():
            for parameter in place.held[name].trained():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def built(family: str, method: str = "lora", **options: Any) -> tuple[nn.Module, list[Any]]:
    """A family's model with a stirred adapter of a method."""
    model, batches = families()[family]()
    if METHODS[method].wanted:
        options |= {"batches": batches, "loss": lambda out, batch: getattr(out, "logits", out).square().mean()}
    if "original" in METHODS[method].options:
        options["original"] = {name: p * (1 + 0.1 * p.sin()) for name, p in model.named_parameters()}
    if family == "conv2d":
        options["exclude"] = "depthwise"
    stirred(model, method=method, **options)
    return model, batches


def square(dtype: torch.dtype, size: float) -> nn.Module:
    """One Gaussian matrix with an adapter of ‖Δ‖/‖W‖ = size."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256, bias=False))
    nn.init.normal_(model[0].weight, std=256**-0.5, generator=generator)
    adapt(model.to(dtype), rank=16)
    adapter = places(model)["0"].held["default"]
    nn.init.normal_(adapter.B, generator=generator)
    with torch.no_grad():
        adapter.B.mul_(size * model[0].base.weight.float().norm() / adapter.delta().norm())
    return model


def state(model: nn.Module) -> tuple[list[tuple[str, type]], dict[str, Tensor]]:
    """Everything that a refusal must leave alone."""
    return [(key, type(m)) for key, m in model.named_modules()], {k: v.clone() for k, v in model.state_dict().items()}


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal."""
    return one[0] == other[0] and all(torch.equal(one[1][key], other[1][key]) for key in one[1] | other[1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_model_gives_what_the_adapted_one_did_in_plain_layers(family: str, method: str) -> None:
    plain, _ = families()[family]()
    model, batches = built(family, method, bias=True)
    expected = output(model, batches[0])
    merged = merge(model, tolerance=1.0)
    assert all(each.error < 1e-2 for each in merged.certificates.values())
    assert [(key, type(m)) for key, m in model.named_modules()] == [(key, type(m)) for key, m in plain.named_modules()]
    torch.testing.assert_close(output(model, batches[0]), expected, atol=1e-4, rtol=1e-4)


def test_the_old_weight_tensor_is_left_as_it_was() -> None:
    model, _ = families()["sequential"]()
    before = {key: (p, p.detach().clone()) for key, p in model.named_parameters()}
    stirred(model)
    merge(model)
    for key, p in model.named_parameters():
        assert torch.equal(*before[key])
        assert (p is before[key][0]) == key.endswith("bias")


# ‖round(W+Δ)−W−Δ‖ / ‖Δ‖ for Gaussian W and Δ
@pytest.mark.parametrize(
    ("dtype", "size", "error"),
    [
        (torch.bfloat16, 3e-2, 0.06),
        (torch.bfloat16, 1e-2, 0.17),
        (torch.bfloat16, 3e-3, 0.48),
        (torch.bfloat16, 1e-3, 0.79),
        (torch.float16, 3e-2, 0.007),
        (torch.float16, 1e-2, 0.02),
        (torch.float16, 3e-3, 0.07),
        (torch.float16, 1e-3, 0.21),
    ],
)
def test_the_certificate_says_what_rounding_takes_from_gaussian_matrices(
    dtype: torch.dtype, size: float, error: float
) -> None:
    certificate = certify(square(dtype, size))["0"]
    assert certificate.error == pytest.approx(error, rel=0.12)
    assert certificate.size == pytest.approx(size, rel=1e-2)
    assert certificate.dtype == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_the_certificate_is_that_of_the_weight_which_merge_writes(rounding: Any) -> None:
    model = square(torch.bfloat16, 1e-2)
    W, delta = model[0].base.weight.double(), places(model)["0"].held["default"].delta().double()
    promised = certify(model, rounding=rounding, generator=torch.Generator().manual_seed(7))
    merged = merge(model, rounding=rounding, generator=torch.Generator().manual_seed(7), tolerance=1.0)
    missed = model[0].weight.double() - W - delta
    assert merged.certificates == promised
    assert promised["0"].error == pytest.approx(float(missed.norm() / delta.norm()), rel=1e-4)
    assert promised["0"].lost == pytest.approx(-float((missed * delta).sum() / delta.square().sum()), abs=1e-4)


def test_stochastic_rounding_keeps_small_changes_on_average_where_the_nearest_loses_them() -> None:
    nearest = certify(square(torch.bfloat16, 1e-3))["0"]
    stochastic = certify(square(torch.bfloat16, 1e-3), rounding="stochastic")["0"]
    assert nearest.lost == pytest.approx(0.47, abs=0.03)
    assert stochastic.error > nearest.error
    assert abs(stochastic.lost) < 0.02


def test_certificates_are_plain_data() -> None:
    certificate = certify(built("sequential")[0])["0"]
    assert json.loads(json.dumps(certificate._asdict()))["dtype"] == "float32"


def test_an_adapter_that_changes_nothing_loses_nothing() -> None:
    model = nn.Sequential(nn.Linear(8, 8)).bfloat16()
    W = model[0].weight.detach().clone()
    adapt(model, rank=2)
    assert merge(model).certificates["0"][:3] == (0.0, 0.0, 0.0)
    assert torch.equal(model[0].weight, W)


def test_a_change_that_rounding_would_take_is_refused_and_nothing_changes() -> None:
    model = square(torch.bfloat16, 1e-2)
    before = state(model)
    with pytest.raises(ValueError, match=r"tolerance: 0.01 is exceeded by 1 of 1 matrices, worst 0: .* 1\d\.\d\d %"):
        merge(model)
    assert same(before, state(model))
    with pytest.raises(ValueError, match=r'\(--dtype float32\), rounding="stochastic" .*keep_unmergeable=True'):
        merge(model)


def test_float32_is_a_remedy_and_takes_the_bias_along() -> None:
    model = nn.Sequential(nn.Linear(64, 64)).bfloat16()
    stirred(model)
    x = torch.randn(3, 64)
    expected = model[0].base.float()(x) + x @ places(model)["0"].held["default"].delta().mT
    model[0].base.bfloat16()
    merged = merge(model, dtype=torch.float32)
    assert merged.certificates["0"].error < 1e-4
    assert (model[0].weight.dtype, model[0].bias.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(model(x), expected, atol=1e-2, rtol=1e-2)


def test_what_cannot_be_merged_can_keep_its_adapter() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).bfloat16()
    stirred(model)
    with torch.no_grad():
        places(model)["0"].held["default"].B.mul_(100)
        places(model)["1"].held["default"].B.mul_(1e-2)
    activate(model)
    merged = merge(model, "default", keep_unmergeable=True, tolerance=0.05)
    assert list(merged.kept) == ["1"]
    assert "rounding to bfloat16 takes" in merged.kept["1"]
    assert str(merged).endswith("1 keep their adapters: 1")
    assert (type(model[0]), names(model), model[1].active) == (nn.Linear, ["default"], ("default",))


def test_several_adapters_merge_as_their_sum() -> None:
    model, batches = families()["sequential"]()
    stirred(model, "law", seed=1)
    stirred(model, "code", seed=2, targets=["0", "4"])
    activate(model, "law", "code")
    expected = output(model, batches[0])
    merge(model)
    assert names(model) == []
    torch.testing.assert_close(output(model, batches[0]), expected, atol=1e-5, rtol=1e-5)


def test_an_adapter_that_would_be_left_on_a_changed_weight_is_named() -> None:
    model, _ = families()["sequential"]()
    stirred(model, "law", seed=1)
    stirred(model, "code", seed=2)
    before = state(model)
    with pytest.raises(ValueError, match="0 has law too"):
        merge(model)
    assert same(before, state(model))


def test_merging_a_tied_embedding_is_refused_or_left() -> None:
    model, batches = families()["llama"]()
    stirred(model, targets=["embed_tokens", "q_proj"])
    expected = output(model, batches[0])
    with pytest.raises(ValueError, match=r"would untie model\.embed_tokens \(tied to lm_head\)"):
        merge(model)
    assert list(merge(model, keep_unmergeable=True).kept) == ["model.embed_tokens"]
    torch.testing.assert_close(output(model, batches[0]), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("family", "targets"), [("mixtral", "*experts*"), ("encoder", "*in_proj_weight")])
def test_parameters_that_no_layer_applies_are_merged_too(family: str, targets: str) -> None:
    plain, batches = families()[family]()
    model, _ = families()[family]()
    stirred(model, targets=targets)
    expected = output(model, batches[0])
    merge(model)
    assert list(model.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(output(model, batches[0]), expected, atol=1e-4, rtol=1e-4)


class Int8(Tensor):
    """A weight that dequantises itself, as torchao's do."""

    def dequantize(self) -> Tensor:
        return (self.as_subclass(Tensor) * 16).round() / 16


def test_a_quantised_layer_becomes_a_dense_one_with_its_dequantised_weight_in_the_sum() -> None:
    model = nn.Sequential(nn.Linear(8, 6))
    x = torch.randn(3, 8)
    W = (model[0].weight.detach() * 16).round() / 16
    model[0].weight = nn.Parameter(model[0].weight.detach().as_subclass(Int8), requires_grad=False)
    stirred(model)
    delta = places(model)["0"].held["default"].delta().detach()
    bias = model[0].base.bias.detach()
    merge(model)
    assert (type(model[0]), type(model[0].weight)) == (nn.Linear, nn.Parameter)
    torch.testing.assert_close(model(x), x @ (W + delta).T + bias)


def test_modules_trained_whole_take_their_places() -> None:
    model, batches = families()["sequential"]()
    stirred(model, modules_to_save="4")
    with torch.no_grad():
        model[4].acting().weight.mul_(2)
    expected = output(model, batches[0])
    merge(model)
    assert type(model[4]) is nn.Linear
    torch.testing.assert_close(output(model, batches[0]), expected, atol=1e-5, rtol=1e-5)


def test_a_module_that_two_adapters_trained_whole_is_not_taken_from_one() -> None:
    model, _ = families()["sequential"]()
    stirred(model, "a", targets="0", modules_to_save="4")
    stirred(model, "b", targets="2", modules_to_save="4")
    with pytest.raises(ValueError, match="names: b trained 4 whole too, and would lose it"):
        merge(model, "a")
    with pytest.raises(ValueError, match="a and b each trained 4 whole"):
        merge(model, ["a", "b"])
    assert set(saved_modules(model)["4"].copies) == {"a", "b"}


def test_bad_requests_are_named() -> None:
    model = square(torch.float16, 1e-2)
    with pytest.raises(ValueError, match="no adapter 'defualt'; closest: default"):
        merge(model, "defualt")
    with pytest.raises(ValueError, match=r"0 is to be torch\.float16"):
        merge(model, rounding="stochastic")
    with pytest.raises(ValueError, match="rounding: 'up'; give \"nearest\""):
        merge(model, rounding="up")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no floating-point type"):
        merge(model, dtype=torch.int8)
    activate(model)
    with pytest.raises(ValueError, match="no adapter is active; name those to merge, of default"):
        merge(model)
    with pytest.raises(ValueError, match="no adapter is active"):
        merge(nn.Sequential(nn.Linear(2, 2)))
