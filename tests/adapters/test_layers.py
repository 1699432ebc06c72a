"""Layers of every kind: convolutions, groups, embeddings and bags; in half precision; by default and by name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart.adapters import adapt, disabled
from eckart.adapters.layers.place import places
from eckart.nn.batches import run_model
from families import ConvNet, families

IDS = torch.tensor([[1, 7, 3], [3, 0, 2]])
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...]]] = {
    "linear": (lambda: nn.Linear(6, 5), (torch.randn(2, 3, 6),)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2), (torch.randn(2, 4, 9),)),
    "grouped": (lambda: nn.Conv2d(4, 8, 3, groups=2, dilation=2), (torch.randn(2, 4, 7, 7),)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, padding=1), (torch.randn(2, 4, 7, 7),)),
    "reflected": (lambda: nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"), (torch.randn(2, 4, 7, 7),)),
    "single image": (lambda: nn.Conv2d(4, 8, 3), (torch.randn(4, 7, 7),)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2), (torch.randn(2, 2, 4, 4, 4),)),
    "embedding": (lambda: nn.Embedding(8, 5), (IDS,)),
    "mean of a bag": (lambda: nn.EmbeddingBag(8, 5), (IDS,)),
    "weighted sum of bags": (
        lambda: nn.EmbeddingBag(8, 5, mode="sum"),
        (IDS.flatten(), torch.tensor([0, 2]), torch.rand(6)),
    ),
    "largest of a bag": (lambda: nn.EmbeddingBag(8, 5, mode="max"), (IDS,)),
}


class Called(nn.Module):
    """A model that is one layer, called with all that it is given."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Any) -> Tensor:
        return self.layer(*inputs)


def stirred(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return model


def output(model: nn.Module, batch: Any) -> Tensor:
    result = run_model(model, batch)
    return getattr(result, "logits", result)


def halved(batch: Any) -> Any:
    """The same batch with its floating-point numbers in bfloat16."""
    if isinstance(batch, dict):
        return {key: halved(value) for key, value in batch.items()}
    return batch.bfloat16() if batch.is_floating_point() else batch


def dense(model: Called) -> Tensor:
    """The weight with its change, as the layer stores it, formed by the definition."""
    (place,) = places(model).values()
    (adapter,) = place.live()
    W = place.weight_matrix().float() + adapter.delta().float()
    if adapter.magnitude is not None:
        W = adapter.magnitude.unsqueeze(-1) * W / W.norm(dim=-1, keepdim=True)
    return W.reshape(place.base.weight.shape)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("method", ["lora", "dora", "vera", "loha", "lokr"])
def test_an_adapted_layer_is_the_layer_with_the_changed_weight(name: str, method: str) -> None:
    make, inputs = LAYERS[name]
    model = Called(make())
    plain = model(*inputs)
    adapt(model, method, rank=1, targets="layer", bias=not name.endswith(("embedding", "bag", "bags")))
    torch.testing.assert_close(model(*inputs), plain, rtol=1e-5, atol=1e-5)
    got = stirred(model)(*inputs)
    assert not torch.allclose(got, plain, atol=1e-3)
    base, (adapter,) = model.layer.base, model.layer.live()
    with torch.no_grad():
        W = dense(model)
        base.weight.copy_(W)
        if adapter.bias is not None:
            base.bias.add_(adapter.bias.flatten())
    with disabled(model):
        torch.testing.assert_close(got, model(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LAYERS)
def test_a_base_in_half_precision_has_adapters_in_single_precision(name: str, dtype: torch.dtype) -> None:
    make, inputs = LAYERS[name]
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    model = Called(make().to(dtype))
    plain = model(*inputs)
    adapt(model, rank=1, targets="layer")
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    y = stirred(model)(*inputs)
    assert y.dtype == plain.dtype == dtype
    y.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    expected = torch.func.functional_call(model.layer.base, {"weight": dense(model).to(dtype)}, inputs)
    torch.testing.assert_close(y, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_adapter_has_the_dtype_that_is_asked_for(dtype: torch.dtype) -> None:
    model = Called(nn.Linear(6, 5))
    adapt(model, rank=1, dtype=dtype)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {dtype}
    stirred(model)(torch.randn(2, 6)).sum().backward()


@pytest.mark.parametrize("family", ["llama", "mixtral", "vit", "encoder", "conv2d"])
def test_whole_models_in_bfloat16_train_an_adapter(family: str) -> None:
    model, batches = families()[family]()
    model.bfloat16()
    batch = halved(batches[0])
    plain = output(model, batch)
    adapt(model, rank=2)
    torch.testing.assert_close(output(model, batch), plain, rtol=0.05, atol=0.05)
    stirred(model)
    output(model, batch).float().square().mean().backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_matrices_that_are_too_small_are_left_out_by_default_with_a_reason() -> None:
    model = ConvNet()
    adaptation = adapt(model, rank=8)
    assert set(adaptation.settings.ranks) == {"stem", "pointwise"}
    assert set(adaptation.left_out) == {"grouped", "depthwise", "head"}
    assert "(3, 18) is too small for rank 8" in adaptation.left_out["grouped"]
    assert str(adaptation).endswith("; 3 left out, see left_out")


def test_matrices_that_are_too_small_raise_where_they_are_named() -> None:
    for options in ({"targets": "depthwise", "rank": 8}, {"rank": {"depthwise": 8}}):
        with pytest.raises(ValueError, match=r"rank: 8 for depthwise \(1, 9\); give a whole number from 1 to 1"):
            adapt(ConvNet(), **options)


def test_a_rank_that_fits_nowhere_raises() -> None:
    with pytest.raises(ValueError, match="rank: 50 for stem"):
        adapt(ConvNet(), rank=50)


def test_ranks_name_what_is_not_adapted_by_default() -> None:
    model, _ = families()["bert"]()
    adaptation = adapt(model, rank={"bert.embeddings.position_embeddings": 2})
    assert list(adaptation.settings.ranks) == ["bert.embeddings.position_embeddings"]
    assert adaptation.left_out == {}


def test_a_grouped_convolution_has_factors_for_each_group_and_no_dense_change(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(8, 12, 3, groups=4))
    adapt(model, rank=2)
    (adapter,) = model[0].live()
    assert (adapter.B.shape, adapter.A.shape) == ((4, 3, 2), (4, 2, 18))
    monkeypatch.setattr(type(adapter), "delta", lambda self: pytest.fail("formed"))
    model(torch.randn(1, 8, 5, 5)).sum().backward()


class Doubled(nn.Linear):
    """A linear layer that does more."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("put", ["in the class", "on the layer", "on the layer once it is adapted"])
def test_a_forward_of_another_kind_is_called_and_the_repr_says_so(put: str) -> None:
    """Offloading, quantisation-aware training and others do it so."""
    model = nn.Sequential(Doubled(6, 6) if put == "in the class" else nn.Linear(6, 6))
    layer: Any = model[0]
    if put == "on the layer":
        layer.forward = lambda x: 2 * nn.functional.linear(x, layer.weight, layer.bias)
    adapt(model, rank=2)
    x = torch.randn(3, 6)
    if put == "on the layer once it is adapted":
        model(x)
        layer.forward = lambda x: 2 * nn.functional.linear(x, layer.weight, layer.bias)
    delta = stirred(model)[0].live()[0].delta()
    torch.testing.assert_close(model(x), 2 * (x @ layer.weight.T + layer.bias) + x @ delta.T)
    assert f"computed apart: it does more than x Wᵀ + b (the forward of {type(layer).__name__}" in repr(model)


def test_a_layer_that_is_parametrized_already_computes_apart_and_says_so() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    adapt(model, rank=2)
    assert "computed apart: its weight is computed at each use" in repr(model)
    assert "computed apart" not in repr(nn.Sequential(nn.Linear(4, 4)))
