"""nn.FactoredLinear and nn.PivotedLinear: the same map as the dense product, in fewer numbers, as ordinary modules."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eckart.nn import FactoredLinear, PivotedLinear

KINDS = {"factored": FactoredLinear, "pivoted": PivotedLinear.from_product}


@pytest.fixture(params=sorted(KINDS))
def make(request: pytest.FixtureRequest):
    return KINDS[request.param]


def _factors(m: int, r: int, n: int, generator: torch.Generator, dtype=torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((m, r), (r, n), (m,))
    return tuple(torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)


@pytest.mark.parametrize(("m", "r", "n"), [(9, 4, 7), (5, 5, 8), (8, 5, 5), (6, 1, 1), (1, 1, 6), (4, 0, 3)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_forward_is_the_dense_product(make, m, r, n, with_bias, generator):
    B, A, bias = _factors(m, r, n, generator, torch.float64)
    layer = make(B, A, bias if with_bias else None)
    x = torch.randn(2, 3, n, dtype=torch.float64, generator=generator)
    expected = F.linear(x, B @ A, bias if with_bias else None)
    torch.testing.assert_close(layer(x), expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(layer.weight, B @ A, rtol=1e-11, atol=1e-11)


def test_the_numbers_held_are_as_stated(generator):
    B, A, bias = _factors(12, 4, 10, generator)
    counts = {}
    for name, make in KINDS.items():
        layer = make(B, A, bias)
        counts[name] = sum(parameter.numel() for parameter in layer.parameters()) - 12
    assert counts == {"factored": 4 * (12 + 10), "pivoted": 4 * (12 + 10 - 4)}


def test_at_full_rank_the_pivoted_layer_holds_no_more_than_the_dense_matrix(generator):
    for m, n in ((6, 9), (9, 6)):
        B, A, _ = _factors(m, min(m, n), n, generator)
        assert sum(each.numel() for each in PivotedLinear.from_product(B, A).parameters()) == m * n


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 4e-2), (torch.float16, 5e-3)])
def test_half_precision_stays_in_its_dtype_and_near_the_product(make, dtype, tolerance, generator):
    B, A, bias = _factors(48, 16, 40, generator)
    layer = make(B / 4, A / 6, bias).to(dtype)
    x = torch.randn(5, 40, generator=generator)
    y = layer(x.to(dtype))
    expected = F.linear(x, B @ A / 24, bias)
    assert y.dtype == dtype
    assert (y.float() - expected).norm() / expected.norm() <= tolerance


def test_gradients_are_those_of_the_dense_product(make, generator):
    B, A, bias = _factors(9, 4, 7, generator, torch.float64)
    layer = make(B, A, bias)
    x = torch.randn(3, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    layer(x).square().sum().backward()
    got = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    F.linear(x, layer.weight, layer.bias).square().sum().backward()
    for gradient, parameter in zip(got, layer.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_a_state_dict_goes_round_bit_for_bit(make, generator):
    B, A, bias = _factors(9, 4, 7, generator, torch.bfloat16)
    layer = make(B, A, bias)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = make(*_factors(9, 4, 7, generator, torch.bfloat16))
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(3, 7, generator=generator).bfloat16()
    assert torch.equal(other(x), layer(x))
    assert all(tensor.is_contiguous() for tensor in layer.state_dict().values())


def test_a_copy_is_equal_and_apart(make, generator):
    layer = make(*_factors(9, 4, 7, generator))
    x = torch.randn(3, 7, generator=generator)
    twin = copy.deepcopy(layer)
    before = layer(x)
    assert torch.equal(twin(x), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(layer(x), before)


def test_the_factors_given_are_copied_not_kept(generator):
    W = torch.randn(9, 100, generator=generator)
    layer = FactoredLinear(W[:, :4], torch.randn(4, 7, generator=generator))
    assert layer.B.untyped_storage().nbytes() == 9 * 4 * 4
    W.zero_()
    assert layer.B.abs().sum() > 0


def test_compiles_without_a_graph_break(make, generator):
    layer = make(*_factors(9, 4, 7, generator))
    x = torch.randn(3, 7, generator=generator)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize("kind", [FactoredLinear, PivotedLinear])
def test_from_linear_makes_the_error_of_eckart_and_young(kind, generator):
    linear = nn.Linear(20, 16)
    S = torch.linalg.svdvals(linear.weight.detach())
    for rank in (1, 7, 16):
        error = (kind.from_linear(linear, rank).weight - linear.weight).norm()
        torch.testing.assert_close(error, S[rank:].norm(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [FactoredLinear, PivotedLinear])
def test_from_linear_takes_transformers_conv1d(kind):
    from transformers.pytorch_utils import Conv1D

    conv = Conv1D(10, 6)
    x = torch.randn(2, 3, 6)
    layer = kind.from_linear(conv, 6)
    assert (layer.out_features, layer.in_features) == (10, 6)
    torch.testing.assert_close(layer(x), conv(x), rtol=1e-4, atol=1e-5)


def test_to_dense_is_the_same_map_in_one_dense_layer(make, generator):
    layer = make(*_factors(9, 4, 7, generator))
    x = torch.randn(3, 7, generator=generator)
    dense = layer.to_dense()
    assert type(dense) is nn.Linear
    assert repr(dense) == "Linear(in_features=7, out_features=9, bias=True)"
    torch.testing.assert_close(dense(x), layer(x))
    assert make(*_factors(9, 4, 7, generator)[:2]).to_dense().bias is None


def test_repr_says_the_rank(make, generator):
    assert "(in_features=7, out_features=9, rank=4, bias=False)" in repr(make(*_factors(9, 4, 7, generator)[:2]))


def test_factors_that_do_not_chain_are_an_error():
    with pytest.raises(ValueError, match=r"must chain, got shapes \(4, 2\) and \(3, 5\)"):
        FactoredLinear(torch.ones(4, 2), torch.ones(3, 5))
    with pytest.raises(ValueError, match=r"must chain, got shapes \(4, 2\) and \(3, 5\)"):
        PivotedLinear(torch.ones(4, 2), torch.ones(3, 5), torch.arange(3))


def test_a_bias_of_the_wrong_length_is_an_error(make):
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\) to fit the outputs, got \(3,\)"):
        make(torch.ones(4, 2), torch.ones(2, 5), torch.ones(3))


@pytest.mark.parametrize("index", [[0, 0], [0, 4], [-1, 2], [0]])
def test_an_index_that_is_not_r_distinct_positions_is_an_error(index):
    with pytest.raises(ValueError, match="index must be 2"):
        PivotedLinear(torch.ones(2, 2), torch.ones(2, 5), torch.tensor(index))


def test_a_layer_of_another_kind_cannot_be_factored():
    with pytest.raises(TypeError, match=r"a Conv2d cannot be factored; give an nn\.Linear"):
        FactoredLinear.from_linear(nn.Conv2d(3, 3, 3), 2)


@pytest.mark.parametrize("kind", [FactoredLinear, PivotedLinear])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("in_context", [False, True])
def test_an_empty_layer_takes_a_state_dict_on_any_device(kind, device, in_context, generator):
    layer = kind.from_linear(nn.Linear(7, 9).bfloat16(), rank=4)
    if in_context:  # as from_pretrained builds a model
        with torch.device(device):
            other = kind.empty(7, 9, rank=4, dtype=torch.bfloat16)
    else:
        other = kind.empty(7, 9, rank=4, dtype=torch.bfloat16, device=device)
    assert {tensor.device.type for tensor in other.state_dict().values()} == {device}
    other.load_state_dict(layer.state_dict(), assign=device == "meta")
    x = torch.randn(3, 7, generator=generator).bfloat16()
    assert torch.equal(other(x), layer(x))
    assert str(other) == str(layer)
    assert kind.empty(7, 9, rank=4, bias=False).bias is None


def test_an_empty_pivoted_layer_of_too_high_a_rank_is_an_error():
    with pytest.raises(ValueError, match="rank is 10: from 0 to out_features, 9"):
        PivotedLinear.empty(7, 9, rank=10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_factors_of_a_half_precision_layer_are_rounded_once(dtype):
    linear = nn.Linear(20, 16).to(dtype)
    wide = copy.deepcopy(linear).float()
    half, full = (FactoredLinear.from_linear(layer, rank=5) for layer in (linear, wide))
    assert torch.equal(half.B, full.B.to(dtype))
    assert torch.equal(half.A, full.A.to(dtype))
    pivoted, full = (PivotedLinear.from_linear(layer, rank=5) for layer in (linear, wide))
    assert torch.equal(pivoted.C, full.C.to(dtype))
    assert torch.equal(pivoted.P, full.P.to(dtype))
