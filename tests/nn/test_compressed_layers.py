"""The contract of `nn.compressed`, over every kind: the dense map, as an ordinary module with a spec."""

import copy
import json
from typing import Any

import pytest
import torch
from compressed_samples import CHANNELS, KERNEL, MAKERS, RANK, M, N, sample
from torch import nn
from torch.nn import functional as F

from eckart.nn import LAYERS, FactoredLinear, is_compressed, layer_from_spec, left_out, matrices, replace

ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@pytest.fixture(params=sorted(LAYERS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_there_is_a_sample_of_every_kind_and_each_class_says_its_own() -> None:
    assert set(MAKERS) == set(LAYERS)
    for kind, layer in LAYERS.items():
        assert layer.kind == kind
        assert layer.seen_as in ("linear", "conv")


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_is_its_dense_equivalent_up_to_rounding(kind: str, dtype: torch.dtype, bias: bool) -> None:
    layer, x = sample(kind, bias, dtype)
    dense = layer.to_dense()
    assert type(dense) in (nn.Linear, nn.Conv2d)
    y, expected = layer(x), dense.double()(x.double())
    assert y.dtype == dtype
    assert dense.weight.shape[0] == layer.out_features == M
    assert (dense.bias is not None) is bias
    assert (y.double() - expected).norm() <= ROUNDING[dtype] * expected.norm()
    assert torch.equal(dense.weight.flatten(1), layer.weight.double())
    assert layer.weight.shape == (layer.out_features, layer.in_features)


def test_gradients_are_those_of_the_dense_map(kind: str) -> None:
    layer, x = sample(kind, dtype=torch.float64)
    x.requires_grad_()
    layer(x).square().sum().backward()
    got, of_x = [p.grad.clone() for p in layer.parameters()], x.grad.clone()
    layer.zero_grad()
    x.grad = None
    shape = layer.to_dense().weight.shape
    W = layer.weight.reshape(shape)
    y = F.linear(x, W, layer.bias) if len(shape) == 2 else F.conv2d(x, W, layer.bias, layer.stride, layer.padding)
    y.square().sum().backward()
    torch.testing.assert_close(of_x, x.grad)
    assert len(got) >= 1
    for gradient, parameter in zip(got, layer.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_a_copy_is_equal_and_apart(kind: str) -> None:
    layer, x = sample(kind)
    before, twin = layer(x), copy.deepcopy(layer)
    assert torch.equal(twin(x), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.fill_(7)
    assert torch.equal(layer(x), before)
    assert not torch.equal(twin(x), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_spec_goes_through_json_and_takes_the_state_dict_bit_for_bit(
    kind: str, dtype: torch.dtype, device: str, bias: bool
) -> None:
    layer, x = sample(kind, bias, dtype)
    spec = json.loads(json.dumps(layer.spec()))
    assert spec["kind"] == kind
    assert spec["bias"] is bias
    other = layer_from_spec(spec, dtype, device)
    assert {tensor.device.type for tensor in other.state_dict().values()} == {device}
    other.load_state_dict(layer.state_dict(), assign=device == "meta")
    assert torch.equal(other(x), layer(x))
    assert str(other) == str(layer)
    assert other.spec() == layer.spec()


def test_an_empty_layer_is_made_where_from_pretrained_makes_it(kind: str) -> None:
    spec = sample(kind)[0].spec()
    with torch.device("meta"):
        layer = layer_from_spec(spec, torch.bfloat16)
    assert {tensor.device.type for tensor in layer.state_dict().values()} == {"meta"}
    assert {tensor.dtype for tensor in layer.state_dict().values() if tensor.is_floating_point()} == {torch.bfloat16}


def test_the_bytes_of_the_weight_are_those_of_all_tensors_but_the_bias(kind: str) -> None:
    layer, _ = sample(kind, bias=True, dtype=torch.bfloat16)
    held = sum(t.nbytes for t in {**dict(layer.named_parameters()), **dict(layer.named_buffers())}.values())
    assert layer.weight_bytes == held - M * 2
    assert all(tensor.is_contiguous() for tensor in layer.state_dict().values())


def test_products_take_the_bytes_that_are_stated() -> None:
    patch = CHANNELS * KERNEL[0] * KERNEL[1]
    numbers = {"factored": RANK * (M + N), "factored_conv": RANK * (M + patch)}
    saved = {"pivoted": numbers["factored"] - RANK**2, "pivoted_conv": numbers["factored_conv"] - RANK**2}
    for kind, count in {**numbers, **saved}.items():
        layer, _ = sample(kind)
        assert layer.weight_bytes == 4 * count + (4 * M if kind in saved else 0)


def test_compiles_without_a_graph_break(kind: str) -> None:
    layer, x = sample(kind)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_it_is_one_matrix_under_its_old_name_and_nothing_of_it_is_left_out(kind: str) -> None:
    layer, _ = sample(kind)
    dense = nn.ModuleDict({"a": layer.to_dense(), "b": nn.Linear(3, 3)})
    model = nn.ModuleDict({"a": layer, "b": nn.Linear(3, 3)})
    (seen, other), (was, _) = matrices(model), matrices(dense)
    assert (seen.name, seen.kind, seen.shape, seen.stored) == ("a", was.kind, was.shape, False)
    assert torch.equal(seen.weight(), was.weight())
    assert other.name == "b"
    assert left_out(model) == {}
    reasons = left_out(model, targets="b")
    assert set(reasons) == {name for name, p in model.named_parameters() if name.startswith("a.") and p.ndim > 1}
    assert set(reasons.values()) <= {"not chosen by targets and exclude"}
    assert is_compressed(layer)
    assert not is_compressed(model["b"])


@pytest.mark.parametrize("damage", ["kind", "missing", "unknown", "size", "negative", "text", "bias", "no dict"])
def test_a_damaged_spec_is_an_error_that_names_the_key(kind: str, damage: str) -> None:
    spec: Any = sample(kind)[0].spec()
    size = next(key for key, value in spec.items() if type(value) is int)
    spec, match = {
        "kind": ({**spec, "kind": kind[:-1]}, f"kind is '{kind[:-1]}'.*closest: .*{kind}"),
        "missing": (
            {key: value for key, value in spec.items() if key != size},
            f"spec of a {kind} layer.*lacks {size}",
        ),
        "unknown": ({**spec, "code": "import os"}, f"spec of a {kind} layer: code is unknown"),
        "size": ({**spec, size: 2.5}, f"{size} is 2.5; give a whole number"),
        "negative": ({**spec, size: -1}, f"{size} is -1; give a whole number"),
        "text": ({**spec, size: "12"}, f"{size} is '12'; give a whole number"),
        "bias": ({**spec, "bias": "yes"}, "bias is 'yes'; give"),
        "no dict": ([spec], r"kind is None; give one of linear, factored"),
    }[damage]
    with pytest.raises(ValueError, match=match):
        layer_from_spec(spec, device="meta")


def test_a_spec_of_a_smaller_dense_layer_makes_one() -> None:
    layer = layer_from_spec({"kind": "linear", "in_features": 3, "out_features": 5, "bias": False}, torch.bfloat16)
    assert (type(layer), layer.weight.shape, layer.weight.dtype, layer.bias) == (
        nn.Linear,
        (5, 3),
        torch.bfloat16,
        None,
    )
    with pytest.raises(ValueError, match="spec of a linear layer: in_features is 0; give a whole number of at least 1"):
        layer_from_spec({"kind": "linear", "in_features": 0, "out_features": 5, "bias": False})


def test_layers_that_share_a_basis_are_matrices_of_their_own_and_each_can_be_replaced() -> None:
    model = nn.Sequential(FactoredLinear.empty(4, 4, rank=2), FactoredLinear.empty(4, 4, rank=2))
    model[1].A = model[0].A
    assert [(matrix.name, matrix.tied) for matrix in matrices(model)] == [("0", ()), ("1", ())]
    replace(model, "0", model[0].to_dense())
    assert [matrix.stored for matrix in matrices(model)] == [True, False]


def test_a_compressed_layer_at_two_places_is_not_replaced_at_one() -> None:
    layer = FactoredLinear.empty(4, 4, rank=2)
    with pytest.raises(ValueError, match="0 shares a parameter or is itself shared with 1"):
        replace(nn.Sequential(layer, layer), "0", nn.Linear(4, 4))
