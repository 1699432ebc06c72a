"""QuantizedLinear, SparseLinear and SumLinear: the map of the matrix that they hold, in fewer bytes, plain modules."""

import copy
import io
import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eckart.linalg import dequantize, quantize
from eckart.nn import FactoredLinear, PivotedLinear
from eckart.nn.quantized_layer import QuantizedLinear
from eckart.nn.sparse_layer import SparseLinear
from eckart.nn.summed import SumLinear

M, N, R = 24, 40, 3


def _linear(dtype: torch.dtype, bias: bool = True) -> nn.Linear:
    return nn.Linear(N, M, bias=bias).to(dtype)


def _sparse(dtype: torch.dtype, bias: bool = True) -> SparseLinear:
    linear = _linear(dtype, bias)
    with torch.no_grad():
        linear.weight.mul_(linear.weight.abs() > 0.1)
    return SparseLinear.from_matrix(linear.weight.detach(), linear.bias)


MAKERS = {
    "int8": lambda dtype: QuantizedLinear.from_linear(_linear(dtype), 8),
    "int4": lambda dtype: QuantizedLinear.from_linear(_linear(dtype), 4, block=16),
    "sparse": _sparse,
    "factors+int4": lambda dtype: SumLinear(
        FactoredLinear.from_linear(_linear(dtype), R), QuantizedLinear.from_linear(_linear(dtype, bias=False), 4)
    ),
    "pivoted+sparse": lambda dtype: SumLinear(PivotedLinear.from_linear(_linear(dtype), R), _sparse(dtype, bias=False)),
}


@pytest.fixture(params=sorted(MAKERS))
def make(request: pytest.FixtureRequest):
    return MAKERS[request.param]


def _stored(layer: nn.Module) -> int:
    return sum(tensor.nbytes for name, tensor in layer.state_dict().items() if not name.endswith("bias"))


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-7), (torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)],
)
def test_forward_is_the_product_with_the_weight(make, dtype, tolerance, generator):
    layer = make(dtype)
    x = torch.randn(2, 3, N, generator=generator).to(dtype)
    y = layer(x)
    expected = F.linear(x.double(), layer.weight.double(), layer.bias.double())
    assert y.dtype == layer.weight.dtype == dtype
    assert (y - expected).norm() <= tolerance * expected.norm()


def test_bytes_of_the_weight_are_those_that_the_state_holds(make):
    for dtype in (torch.float32, torch.bfloat16):
        layer = make(dtype)
        assert layer.weight_bytes == _stored(layer)


def test_the_bytes_are_as_stated():
    wide = nn.Linear(300, 8, bias=False).bfloat16()
    assert QuantizedLinear.from_linear(wide, 8).weight_bytes == 2400 + 2 * 38
    assert QuantizedLinear.from_linear(wide, 4, block=100).weight_bytes == 1200 + 2 * 24
    S = torch.zeros(8, 300)
    S[:, ::30] = 1.0
    assert SparseLinear.from_matrix(S.bfloat16()).weight_bytes == 80 * (2 + 2) + 4 * 9
    assert SparseLinear.from_matrix(S[:, :256]).weight_bytes == 72 * (4 + 1) + 4 * 9


def test_a_state_goes_round_through_the_spec_bit_for_bit(make, generator):
    layer = make(torch.bfloat16)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    spec = json.loads(json.dumps(layer.spec()))
    other = type(layer).from_spec(spec, torch.bfloat16)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(3, N, generator=generator).bfloat16()
    assert torch.equal(other(x), layer(x))
    assert str(other) == str(layer)
    assert other.spec() == spec
    assert all(tensor.is_contiguous() for tensor in layer.state_dict().values())


@pytest.mark.parametrize("in_context", [False, True])
def test_an_empty_layer_on_meta_takes_the_state_as_its_own(make, in_context, generator):
    layer = make(torch.bfloat16)
    if in_context:
        with torch.device("meta"):
            other = type(layer).from_spec(layer.spec(), torch.bfloat16)
    else:
        other = type(layer).from_spec(layer.spec(), torch.bfloat16, "meta")
    assert {tensor.device.type for tensor in other.state_dict().values()} == {"meta"}
    other.load_state_dict(layer.state_dict(), assign=True)
    x = torch.randn(3, N, generator=generator).bfloat16()
    assert torch.equal(other(x), layer(x))


def test_an_empty_layer_runs(make, generator):
    layer = make(torch.float32)
    empty = type(layer).from_spec(layer.spec(), torch.float32)
    assert empty(torch.randn(3, N, generator=generator)).shape == (3, M)


def _damaged(spec: dict) -> list[dict]:
    changes = [{"kind": "other"}, {"in_features": 0}, {"out_features": "24"}, {"bias": 1}, {"unknown": 1}]
    for key in ("bits", "block", "count"):
        changes += [{key: -1}] if key in spec else []
    for key in ("first", "second"):
        changes += [{key: 5}, {key: {"kind": "sum"}}] if key in spec else []
    return [{**spec, **change} for change in changes] + [{k: v for k, v in spec.items() if k != "in_features"}]


def test_a_damaged_spec_is_an_error_that_names_the_key(make):
    layer = make(torch.float32)
    for spec in _damaged(layer.spec()):
        with pytest.raises(ValueError, match=r"spec of a|must have"):
            type(layer).from_spec(spec)


def test_gradients_are_those_of_the_dense_product(make, generator):
    layer = make(torch.float64)
    x = torch.randn(3, N, dtype=torch.float64, generator=generator, requires_grad=True)
    layer(x).square().sum().backward()
    weight = layer.weight.detach()
    again = x.detach().requires_grad_()
    F.linear(again, weight, layer.bias.detach()).square().sum().backward()
    torch.testing.assert_close(x.grad, again.grad, rtol=1e-6, atol=1e-6)
    assert all(parameter.grad is not None for parameter in layer.parameters())
    assert all(parameter.is_floating_point() for parameter in layer.parameters())


def test_values_of_a_sparse_layer_have_the_gradient_of_their_entries(generator):
    layer = _sparse(torch.float64)
    x = torch.randn(5, N, dtype=torch.float64, generator=generator)
    layer(x).square().sum().backward()
    W = layer.weight.detach().requires_grad_()
    F.linear(x, W, layer.bias.detach()).square().sum().backward()
    torch.testing.assert_close(layer.values.grad, W.grad[layer.weight != 0])


def test_both_factors_of_a_sum_have_gradients_and_codes_have_none(generator):
    layer = MAKERS["factors+int4"](torch.float32)
    layer(torch.randn(3, N, generator=generator)).square().sum().backward()
    assert set(dict(layer.named_parameters())) == {"first.B", "first.A", "first.bias"}
    assert all(bool(parameter.grad.abs().sum() > 0) for parameter in layer.parameters())


def test_a_copy_is_equal_and_apart(make, generator):
    layer = make(torch.float32)
    x = torch.randn(2, N, generator=generator)
    twin = copy.deepcopy(layer)
    before = layer(x)
    assert torch.equal(twin(x), before)
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            tensor.zero_()
    assert torch.equal(layer(x), before)


def test_compiles_without_a_graph_break(make, generator):
    layer = make(torch.float32)
    x = torch.randn(2, N, generator=generator)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()


def test_to_dense_is_the_same_map(make, generator):
    layer = make(torch.float32)
    x = torch.randn(2, N, generator=generator)
    dense = layer.to_dense()
    assert type(dense) is nn.Linear
    torch.testing.assert_close(dense(x), layer(x))


def test_a_quantized_weight_is_what_linalg_makes_of_it():
    linear = _linear(torch.float32)
    for bits in (8, 4):
        layer = QuantizedLinear.from_linear(linear, bits, block=32)
        assert torch.equal(layer.weight, dequantize(quantize(linear.weight, bits, block=32)))


@pytest.mark.parametrize("bits", [8, 4])
def test_scales_in_half_precision_add_little_to_the_error_of_the_codes(bits, generator):
    W = torch.randn(200, 256, generator=generator)
    codes = quantize(W, bits)
    exact = (dequantize(codes) - W).square().sum()
    scales = codes.scales.bfloat16()
    rounded = (dequantize(codes._replace(scales=scales)) - W).square().sum()
    assert rounded <= (1.1 if bits == 8 else 1.002) * exact


def test_moving_to_half_precision_keeps_the_codes():
    layer = MAKERS["factors+int4"](torch.float32)
    codes = layer.second.codes.clone()
    layer.bfloat16()
    assert torch.equal(layer.second.codes, codes)
    assert layer.second.scales.dtype == layer.first.B.dtype == torch.bfloat16
    assert layer.weight_bytes == _stored(layer)


def test_transformers_conv1d_is_taken(generator):
    from transformers.pytorch_utils import Conv1D

    conv = Conv1D(M, N)
    x = torch.randn(2, N, generator=generator)
    torch.testing.assert_close(QuantizedLinear.from_linear(conv, 8)(x), conv(x), rtol=0.05, atol=0.01)


def test_a_sparse_layer_of_any_pattern_is_its_matrix(generator):
    for W in (torch.zeros(3, 5), torch.eye(4), torch.ones(1, 7), torch.randn(6, 5, generator=generator).relu()):
        layer = SparseLinear.from_matrix(W)
        assert torch.equal(layer.weight, W)
        assert layer.spec()["count"] == int((W != 0).sum())


@pytest.mark.parametrize(
    ("columns", "starts", "message"),
    [
        ([0, 5], [0, 1, 2], "columns must be from 0 to 4, got 0 to 5"),
        ([0, 1], [0, 1, 3], "starts must ascend from 0 to the 2 values"),
        ([0, 1], [0, 3, 2], "starts must ascend"),
        ([1, 1], [0, 2, 2], "columns must differ within a row"),
        ([0], [0, 1, 1], r"got shapes \(2,\), \(1,\), \(3,\)"),
    ],
)
def test_places_that_do_not_fit_are_an_error(columns, starts, message):
    with pytest.raises(ValueError, match=message):
        SparseLinear(torch.ones(2), torch.tensor(columns), torch.tensor(starts), in_features=5)


def test_parts_of_other_sizes_or_with_two_biases_are_an_error():
    first = FactoredLinear.from_linear(nn.Linear(6, 4), 2)
    with pytest.raises(ValueError, match="second must have the sizes of first, got 7 to 4 beside 6 to 4"):
        SumLinear(first, QuantizedLinear.from_linear(nn.Linear(7, 4, bias=False)))
    with pytest.raises(ValueError, match="second must have no bias"):
        SumLinear(first, QuantizedLinear.from_linear(nn.Linear(6, 4)))


def test_codes_of_a_vector_are_an_error():
    with pytest.raises(ValueError, match=r"codes must be those of a matrix \(m, n\), got shape \(4,\)"):
        QuantizedLinear(quantize(torch.ones(4)))


def test_dead_and_zero_weights_stay_zero(generator):
    W = torch.randn(8, 12, generator=generator)
    W[:, 3] = 0
    layer = QuantizedLinear(quantize(W, 4, block=12))
    assert bool((layer.weight[:, 3] == 0).all())
    zero: Tensor = QuantizedLinear(quantize(torch.zeros(8, 12), 4)).weight
    assert torch.equal(zero, torch.zeros(8, 12))
