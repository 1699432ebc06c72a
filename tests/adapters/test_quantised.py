"""Adapters on quantised bases: int8 weight-only (torchao), NF4 and LLM.int8 (bitsandbytes); skipped where absent."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart.adapters import adapt, disabled
from eckart.adapters.layers.place import adapters, places
from eckart.nn import left_out
from eckart.nn.foreign_quantized import dequantized, is_quantized, quantized_matrices


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))


def int8() -> nn.Module:
    quantization = pytest.importorskip("torchao.quantization", reason="needs torchao (extra quant)")
    model = net()
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


def _replaced(make: Callable[[Any, nn.Linear], nn.Module]) -> nn.Module:
    bnb = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes (extra quant)")
    model = net()
    for name in ("0", "2", "4"):
        linear = model.get_submodule(name)
        layer = make(bnb, linear)
        layer.load_state_dict(linear.state_dict())
        setattr(model, name, layer.to("cpu"))
    return model


def nf4() -> nn.Module:
    return _replaced(
        lambda bnb, linear: bnb.nn.Linear4bit(
            linear.in_features, linear.out_features, compute_dtype=torch.float32, quant_type="nf4"
        )
    )


def rows8() -> nn.Module:
    return _replaced(
        lambda bnb, linear: bnb.nn.Linear8bitLt(linear.in_features, linear.out_features, has_fp16_weights=False)
    )


KINDS = {"torchao int8": int8, "bitsandbytes nf4": nf4, "bitsandbytes int8": rows8}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def stirred(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model


def x() -> Tensor:
    return torch.randn(5, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_the_dequantised_weight_is_the_one_that_the_layer_multiplies_with(kind: str) -> None:
    model = KINDS[kind]()
    layer, plain = model[0], net()[0]
    for _ in range(2):  # LLM.int8 keeps its numbers elsewhere after the first call
        W = dequantized(layer)
        assert W.shape == (32, 64)
        assert 0 < (W - plain.weight).abs().max() < (0.05 if "nf4" in kind else 2e-3)
        torch.testing.assert_close(layer(x()), x() @ W.T + layer.bias, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_layers_are_found_under_their_names(kind: str) -> None:
    model = KINDS[kind]()
    assert {name: matrix.shape for name, matrix in quantized_matrices(model).items()} == {
        "0": (32, 64),
        "2": (64, 32),
        "4": (16, 64),
    }
    assert quantized_matrices(net()) == {}
    if "bitsandbytes" in kind:
        assert all("dequantise it first" in reason for reason in left_out(model).values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["lora", "dora", "vera", "lokr"])
def test_a_quantised_base_is_adapted_as_its_dequantised_weight_would_be(kind: str, method: str) -> None:
    model = KINDS[kind]()
    model(x())
    dense = net()
    with torch.no_grad():
        for name in ("0", "2", "4"):
            dense.get_submodule(name).weight.copy_(dequantized(model.get_submodule(name)))
    adapt(model, method, rank=2)
    adapt(dense, method, rank=2)
    torch.testing.assert_close(stirred(model)(x()), stirred(dense)(x()), rtol=0.05, atol=0.05)
    model(x()).square().mean().backward()
    dense(x()).square().mean().backward()
    for (_, mine), (_, other) in zip(adapters(model, "default"), adapters(dense, "default"), strict=True):
        for p, q in zip(mine.trained(), other.trained(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_disabled_is_the_quantised_base_bit_for_bit_and_its_weight_is_not_touched(kind: str) -> None:
    model = KINDS[kind]()
    layer = model[0]
    model(x())
    plain, W = model(x()), dequantized(layer)
    adapt(model, rank=2)
    stirred(model)
    assert not torch.equal(model(x()), plain)
    with disabled(model):
        assert torch.equal(model(x()), plain)
    assert model[0].base is layer
    assert torch.equal(dequantized(layer), W)
    assert not any(p.requires_grad for p in layer.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_the_repr_says_that_a_quantised_layer_computes_apart(kind: str) -> None:
    model = KINDS[kind]()
    adapt(model, rank=2)
    assert repr(model).count("computed apart: its weight is quantised") == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_that_is_written_makes_the_layer_dense(kind: str) -> None:
    model = KINDS[kind]()
    adapt(model, rank=2)
    expected = stirred(model)(x())
    for place in places(model).values():
        with torch.no_grad():
            place.write(place.changed_weight().float())
        assert not is_quantized(place.base)
    with disabled(model):
        torch.testing.assert_close(model(x()), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_adapter_finds_the_quantised_layers_under_their_names(kind: str) -> None:
    model = KINDS[kind]()
    adapt(model, rank=2, name="one")
    adapt(model, rank=2, name="two", targets=["0", "4"])
    assert {name: list(place.adapters) for name, place in places(model).items()} == {
        "0": ["one", "two"],
        "2": ["one"],
        "4": ["one", "two"],
    }


def test_a_plain_layer_is_not_quantised_and_an_unknown_one_is_refused() -> None:
    assert not any(is_quantized(module) for module in net().modules())
    with pytest.raises(TypeError, match="LayerNorm is not quantised"):
        dequantized(nn.LayerNorm(4))
