"""Starts from the weight: each against its paper's equations, written out in float64, and against PEFT's."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart.adapters import adapt
from eckart.adapters.layers.place import places

R, SCALE = 3, 2.0


def layer(m: int, n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(n, m, bias=False, dtype=dtype)
    linear.weight = nn.Parameter(torch.randn(m, n, generator=generator, dtype=torch.float64).to(dtype))
    return nn.Sequential(linear)


def started(model: nn.Module, method: str, rank: int = R, **options: Any) -> Any:
    adapt(model, method, rank=rank, **options)
    (place,) = places(model).values()
    (adapter,) = place.live()
    return adapter


def same_up_to_signs(X: Tensor, Y: Tensor, dim: int) -> bool:
    signs = (X * Y).sum(dim, keepdim=True).sign()
    return torch.allclose(X * signs, Y, atol=1e-6)


@pytest.mark.parametrize(("m", "n"), [(12, 9), (9, 12)])
@pytest.mark.parametrize(("method", "part"), [("pissa", slice(0, R)), ("milora", slice(-R, None))])
def test_pissa_and_milora_share_out_the_largest_and_the_smallest_singular_triples(
    m: int, n: int, method: str, part: slice
) -> None:
    model = layer(m, n)
    U, S, Vh = torch.linalg.svd(model[0].weight.detach(), full_matrices=False)
    adapter = started(model, method)
    root = (S[part] / SCALE).sqrt()
    assert same_up_to_signs(adapter.B, U[:, part] * root, 0)
    assert same_up_to_signs(adapter.A, root[:, None] * Vh[part], 1)
    torch.testing.assert_close(SCALE * adapter.B @ adapter.A, U[:, part] * S[part] @ Vh[part])
    assert adapter.delta().abs().max() < 1e-14


@pytest.mark.parametrize(("m", "n"), [(12, 9), (9, 12)])
def test_olora_takes_the_first_columns_and_rows_of_the_qr(m: int, n: int) -> None:
    model = layer(m, n)
    Q, T = torch.linalg.qr(model[0].weight.detach())
    adapter = started(model, "olora")
    assert same_up_to_signs(adapter.B, Q[:, :R], 0)
    assert same_up_to_signs(adapter.A, T[:R], 1)
    torch.testing.assert_close(adapter.B @ adapter.A, Q[:, :R] @ T[:R])
    assert adapter.delta().abs().max() < 1e-14


def test_lora_xs_keeps_the_largest_directions_and_trains_the_core_alone() -> None:
    model = layer(12, 9)
    U, S, Vh = torch.linalg.svd(model[0].weight.detach(), full_matrices=False)
    adapter = started(model, "lora-xs")
    assert same_up_to_signs(adapter.B, U[:, :R] * S[:R], 0)
    assert same_up_to_signs(adapter.A, Vh[:R], 1)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["0.adapters.default.R"]
    assert adapter.frozen_B is None
    assert torch.equal(adapter.delta(), torch.zeros(12, 9, dtype=torch.float64))
    x = torch.randn(5, 9, dtype=torch.float64)
    model(x).square().sum().backward()
    assert adapter.R.grad.abs().min() > 0  # zero is no saddle for the core


def test_mica_writes_where_the_weight_writes_least() -> None:
    model = layer(12, 9)
    U, _, _ = torch.linalg.svd(model[0].weight.detach(), full_matrices=False)
    adapter = started(model, "mica")
    assert same_up_to_signs(adapter.B, U[:, -R:], 0)
    assert not adapter.A.any()
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["0.adapters.default.A"]


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_peft_has_the_same_factors_and_the_same_rest(name: str) -> None:
    peft = pytest.importorskip("peft")
    model, theirs = layer(40, 24, dtype=torch.float32), layer(40, 24, dtype=torch.float32)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0"], init_lora_weights=name)
    held = peft.get_peft_model(theirs, config).base_model.model[0]
    W = model[0].weight.detach().clone()
    adapter = started(model, name, rank=4)
    expected = held.lora_B["default"].weight @ held.lora_A["default"].weight
    torch.testing.assert_close(adapter.B @ adapter.A, expected, atol=1e-5, rtol=1e-4)
    rest = W - adapter.scale * adapter.B @ adapter.A
    torch.testing.assert_close(rest, held.base_layer.weight, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(adapter.B.norm(dim=0), held.lora_B["default"].weight.norm(dim=0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["pissa", "milora", "lora-xs", "olora"])
def test_a_weight_of_lower_rank_leaves_no_direction_that_cannot_learn(method: str) -> None:
    model = layer(12, 9)
    with torch.no_grad():
        model[0].weight.copy_(torch.outer(torch.arange(1.0, 13), torch.arange(1.0, 10)))
    before = model(torch.eye(9, dtype=torch.float64))
    adapter = started(model, method, rank=4)
    torch.testing.assert_close(model(torch.eye(9, dtype=torch.float64)), before)
    target = torch.randn(9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (model(torch.eye(9, dtype=torch.float64)) * target).sum().backward()
    if method == "lora-xs":
        assert adapter.R.grad.abs().min() > 1e-6
    else:
        moved = adapter.B.grad.norm(dim=0) + adapter.A.grad.norm(dim=1)
        assert moved.min() > 1e-6


def test_large_weights_give_the_largest_directions_within_a_per_cent() -> None:
    model = layer(400, 300, dtype=torch.float32)
    S = torch.linalg.svdvals(model[0].weight.detach().double())
    adapter = started(model, "pissa", rank=8)
    kept = torch.linalg.svdvals((adapter.scale * adapter.B @ adapter.A).detach().double())[:8]
    assert ((S[:8] - kept).abs() / S[:8]).max() < 1e-2
