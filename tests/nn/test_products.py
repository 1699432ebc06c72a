"""A layer's product with another matrix, dense or B·A, is what the layer gives when it holds that matrix."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart.nn.products import along_outputs, pair_product, product, scale_rows


def layers() -> dict[str, tuple[nn.Module, str, tuple[Any, ...]]]:
    """name → (layer without bias, kind, what it is called with)."""
    g = torch.Generator().manual_seed(0)
    ids = torch.tensor([1, 7, 3, 3, 0])
    return {
        "linear": (nn.Linear(5, 8, bias=False), "linear", (torch.randn(2, 3, 5, generator=g),)),
        "conv1d": (nn.Conv1d(4, 6, 3, stride=2, bias=False), "conv", (torch.randn(2, 4, 9, generator=g),)),
        "grouped": (
            nn.Conv2d(4, 8, 3, groups=2, padding=1, dilation=2, bias=False),
            "conv",
            (torch.randn(2, 4, 7, 7, generator=g),),
        ),
        "depthwise": (nn.Conv2d(6, 6, 3, groups=6, bias=False), "conv", (torch.randn(2, 6, 7, 7, generator=g),)),
        "circular": (
            nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular", bias=False),
            "conv",
            (torch.randn(2, 4, 7, 7, generator=g),),
        ),
        "conv3d": (nn.Conv3d(2, 4, 2, bias=False), "conv", (torch.randn(2, 2, 4, 4, 4, generator=g),)),
        "unbatched": (nn.Conv2d(4, 8, 3, bias=False), "conv", (torch.randn(4, 7, 7, generator=g),)),
        "embedding": (nn.Embedding(8, 5, padding_idx=0), "embedding", (ids,)),
        "bag": (nn.EmbeddingBag(8, 5), "embedding", (ids, torch.tensor([0, 2]))),
        "weighted bag": (
            nn.EmbeddingBag(8, 5, mode="sum", include_last_offset=True),
            "embedding",
            (ids, torch.tensor([0, 2, 5]), torch.rand(5, generator=g)),
        ),
    }


def other(layer: Any, kind: str) -> Tensor:
    """Another matrix for the layer, (m, n) or (groups, m, n)."""
    W = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(1))
    if kind != "conv":
        return W
    return W.flatten(1) if layer.groups == 1 else W.reshape(layer.groups, len(W) // layer.groups, -1)


@pytest.mark.parametrize("name", layers())
def test_the_product_is_what_the_layer_gives_with_that_weight(name: str) -> None:
    layer, kind, inputs = layers()[name]
    W = other(layer, kind)
    got = product(layer, kind, inputs[0], W, *inputs[1:])
    with torch.no_grad():
        layer.weight.copy_(W.reshape(layer.weight.shape))
    torch.testing.assert_close(got, layer(*inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", layers())
def test_a_product_of_two_factors_is_the_dense_one(name: str) -> None:
    layer, kind, inputs = layers()[name]
    W = other(layer, kind)
    B = torch.randn(*W.shape[:-1], 2, generator=torch.Generator().manual_seed(2))
    A = torch.randn(*W.shape[:-2], 2, W.shape[-1], generator=torch.Generator().manual_seed(3))
    got = pair_product(layer, kind, inputs[0], B, A, *inputs[1:])
    torch.testing.assert_close(got, product(layer, kind, inputs[0], B @ A, *inputs[1:]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in layers() if "bag" not in name])
def test_scaled_rows_are_those_of_the_scaled_matrix(name: str) -> None:
    layer, kind, inputs = layers()[name]
    W = other(layer, kind)
    c = torch.rand(W.shape[:-1], generator=torch.Generator().manual_seed(4))
    y = product(layer, kind, inputs[0], W)
    c_of_ids = c if kind != "embedding" else c.flatten()
    got = scale_rows(layer, kind, inputs[0], y, c_of_ids)
    torch.testing.assert_close(got, product(layer, kind, inputs[0], c.unsqueeze(-1) * W), rtol=1e-4, atol=1e-4)


def test_a_vector_lies_along_the_channels_of_batched_and_single_images() -> None:
    conv = nn.Conv2d(3, 4, 1, groups=1)
    assert along_outputs(conv, "conv", torch.ones(4)).shape == (4, 1, 1)


def test_the_largest_of_several_rows_has_no_product() -> None:
    bag = nn.EmbeddingBag(8, 5, mode="max")
    with pytest.raises(ValueError, match="not linear"):
        product(bag, "embedding", torch.tensor([[1, 2]]), torch.ones(8, 5))


@pytest.mark.parametrize("kind", ["experts", "attention"])
def test_a_weight_that_no_module_applies_has_no_product(kind: str) -> None:
    for call in (
        lambda: product(nn.Linear(2, 2), kind, torch.ones(1, 2), torch.ones(2, 2)),
        lambda: pair_product(nn.Linear(2, 2), kind, torch.ones(1, 2), torch.ones(2, 1), torch.ones(1, 2)),
    ):
        with pytest.raises(ValueError, match=kind):
            call()
