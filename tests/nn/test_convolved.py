"""nn.FactoredConv and nn.PivotedConv: the convolution of the product, whatever its geometry, dtype and rank."""

import pytest
import torch
from torch import Tensor, nn

from eckart.nn import FactoredConv, PivotedConv, layer_from_spec

LAYERS = (FactoredConv, PivotedConv)
GEOMETRIES = {
    "plain": (nn.Conv2d, (3, 8, 3), {}, (5, 6)),
    "strided": (nn.Conv2d, (3, 8, (3, 2)), {"stride": (2, 1), "padding": (1, 2)}, (7, 6)),
    "dilated": (nn.Conv2d, (3, 8, 2), {"dilation": (1, 3), "bias": False}, (5, 8)),
    "same": (nn.Conv2d, (3, 8, (3, 2)), {"padding": "same", "dilation": 2}, (6, 6)),
    "valid": (nn.Conv2d, (3, 8, 3), {"padding": "valid"}, (5, 5)),
    "reflected": (nn.Conv2d, (3, 8, 3), {"padding": (1, 2), "padding_mode": "reflect"}, (5, 6)),
    "circular same": (nn.Conv1d, (3, 8, 4), {"padding": "same", "padding_mode": "circular"}, (9,)),
    "replicated": (nn.Conv1d, (3, 8, 3), {"padding": 1, "padding_mode": "replicate", "stride": 2}, (9,)),
    "pointwise": (nn.Conv2d, (3, 8, 1), {}, (4, 4)),
    "conv3d": (nn.Conv3d, (2, 8, (2, 3, 1)), {"padding": (1, 0, 0), "bias": False}, (4, 5, 3)),
}


@pytest.fixture(params=sorted(GEOMETRIES))
def case(request: pytest.FixtureRequest, generator: torch.Generator) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A convolution whose weight is a product of rank 3, an input, and the product."""
    make, sizes, options, side = GEOMETRIES[request.param]
    conv = make(*sizes, **options).double()
    n = conv.weight[0].numel()
    B, A = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((8, 3 if n > 2 else n), (3, n)))
    B = B[:, : len(A)]
    conv.weight = nn.Parameter((B @ A).reshape(conv.weight.shape))
    return conv, torch.randn(2, sizes[0], *side, generator=generator, dtype=torch.float64), B, A


@pytest.mark.parametrize("layer", LAYERS)
def test_it_computes_the_convolution_of_the_product(layer, case) -> None:
    conv, x, B, A = case
    compressed = layer.from_product(conv, B, A)
    torch.testing.assert_close(compressed(x), conv(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(compressed(x[0]), conv(x[0]), rtol=1e-10, atol=1e-10)  # one without a batch dimension
    torch.testing.assert_close(compressed.weight, conv.weight.flatten(1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layer", LAYERS)
def test_its_spec_keeps_the_geometry_and_the_dense_convolution_is_the_one_it_came_from(layer, case) -> None:
    conv, x, B, A = case
    compressed = layer.from_product(conv, B, A)
    other = layer_from_spec(compressed.spec(), torch.float64)
    other.load_state_dict(compressed.state_dict())
    assert torch.equal(other(x), compressed(x))
    assert repr(compressed.to_dense()) == repr(conv)
    torch.testing.assert_close(other.to_dense()(x), conv(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("rank", [0, 1, 8])
def test_the_smallest_and_the_largest_rank_work(layer, rank: int, generator: torch.Generator) -> None:
    conv = nn.Conv2d(3, 8, 3, padding=1).double()
    B, A = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((8, rank), (rank, 27)))
    conv.weight = nn.Parameter((B @ A).reshape(conv.weight.shape))
    x = torch.randn(2, 3, 5, 5, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(layer.from_product(conv, B, A)(x), conv(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layer", LAYERS)
def test_wide_factors_are_rounded_once_to_the_convolutions_dtype(layer, generator: torch.Generator) -> None:
    conv = nn.Conv2d(3, 8, 3)
    B, A = torch.randn(8, 3, generator=generator), torch.randn(3, 27, generator=generator)
    wide, half = layer.from_product(conv, B, A), layer.from_product(conv.bfloat16(), B, A)
    rounded = wide.to(torch.bfloat16).state_dict()
    assert {tensor.dtype for tensor in half.parameters()} == {torch.bfloat16}
    assert all(torch.equal(tensor, rounded[name]) for name, tensor in half.state_dict().items())


@pytest.mark.parametrize("layer", LAYERS)
def test_what_cannot_be_factored_is_an_error(layer) -> None:
    B, A = torch.ones(8, 2), torch.ones(2, 18)
    with pytest.raises(TypeError, match="a convolution with groups=2 cannot be factored"):
        layer.from_product(nn.Conv2d(4, 8, 3, groups=2), B, A)
    with pytest.raises(TypeError, match="a ConvTranspose2d cannot be factored here; give a Conv1d, Conv2d or Conv3d"):
        layer.from_product(nn.ConvTranspose2d(2, 8, 3), B, A)
    with pytest.raises(ValueError, match=r"must have shape \(2, 27\) to fit the convolution, got \(2, 18\)"):
        layer.from_product(nn.Conv2d(3, 8, 3), B, A)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("kernel_size", [3, 3, 3, 3], "kernel_size is .*; give a list of one to three whole numbers"),
        ("kernel_size", [3, 0], "kernel_size is .*; give whole numbers of at least 1"),
        ("stride", [1], "kernel_size is .*; give one number for each dimension"),
        ("padding", "some", "padding is 'some'; give \"same\", \"valid\" or 2 whole numbers"),
        ("padding", 3, "padding is 3; give \"same\""),
        ("padding", [1, 1, 1], "padding is .*; give \"same\""),
        ("padding_mode", "mirror", "padding_mode is 'mirror'; give one of zeros, reflect"),
        ("rank", 9, "rank is 9"),
    ],
)  # fmt: skip
def test_a_damaged_geometry_is_an_error_that_names_the_key(key: str, value: object, match: str) -> None:
    spec = PivotedConv.empty(nn.Conv2d(3, 8, 3), rank=2).spec()
    with pytest.raises(ValueError, match=match):
        layer_from_spec({**spec, key: value}, device="meta")


def test_a_stride_over_one_with_same_padding_is_an_error_of_the_spec() -> None:
    spec = FactoredConv.empty(nn.Conv2d(3, 8, 3), rank=2).spec()
    with pytest.raises(ValueError, match="padding"):
        layer_from_spec({**spec, "padding": "same", "stride": [2, 2]})
