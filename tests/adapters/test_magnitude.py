"""The norm of W + Δ: exact without forming it, computed again only when something changed."""

import pytest
import torch
from torch import Tensor, nn

from eckart.adapters import adapt
from eckart.adapters.layers import magnitude
from eckart.adapters.layers.adapted import AdaptedLayer
from eckart.adapters.layers.magnitude import row_factor, row_norm


def layer(dtype: torch.dtype = torch.float32, m: int = 7, n: int = 9) -> AdaptedLayer:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(n, m)).to(dtype)
    adapt(model, "dora", rank=3, targets="*")
    with torch.no_grad():
        model[0].adapters["default"].B.normal_()  # type: ignore[union-attr,operator]
    return model[0]  # type: ignore[return-value]


def dense(place: AdaptedLayer) -> Tensor:
    (adapter,) = place.live()
    W = place.weight_matrix().double() + adapter.delta().detach().double()
    return adapter.magnitude.double() / W.norm(dim=-1)  # type: ignore[union-attr]


def factor(place: AdaptedLayer) -> Tensor:
    return row_factor(place.live()[0], place.weight_matrix(), place.base.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_factored_norm_is_the_dense_one(dtype: torch.dtype) -> None:
    place = layer(dtype, 65, 40)
    torch.testing.assert_close(factor(place).double(), dense(place), rtol=2e-6, atol=0)


def test_the_norm_is_not_made_in_half_precision_under_autocast() -> None:
    place = layer(torch.float32, 65, 40)
    with torch.autocast("cpu", torch.bfloat16):
        found = factor(place)
    torch.testing.assert_close(found.double(), dense(place), rtol=2e-6, atol=0)


def test_half_precision_is_widened_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    place = layer(torch.bfloat16, 33, 20)
    whole = row_norm(place.live()[0], place.weight_matrix())
    monkeypatch.setattr(magnitude, "_BLOCK", 100)
    assert len(magnitude._blocks(place.weight_matrix())) == 7
    torch.testing.assert_close(row_norm(place.live()[0], place.weight_matrix()), whole)


def test_nothing_is_computed_twice_between_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(magnitude, "row_norm", lambda *args: calls.append(args) or row_norm(*args))  # type: ignore[func-returns-value]
    place = layer()
    first = factor(place)
    assert torch.equal(factor(place), first)
    assert len(calls) == 1


def test_every_way_to_change_a_tensor_is_seen() -> None:
    place = layer()
    (adapter,) = place.live()
    stored = {key: torch.randn_like(value) for key, value in place.state_dict().items()}
    fused = torch.optim.AdamW([adapter.B, adapter.A], lr=0.1, fused=True)
    each = torch.optim.SGD([adapter.B], lr=0.1, foreach=True)

    def step(optimizer: torch.optim.Optimizer) -> None:
        for p in (adapter.B, adapter.A):
            p.grad = torch.randn_like(p)
        optimizer.step()

    @torch.no_grad()
    def in_place() -> None:
        adapter.A.add_(1)
        place.base.weight[0] += 1

    def moved() -> None:
        place.base.weight.data = torch.randn_like(place.base.weight)

    def replaced() -> None:
        place.write(torch.randn(7, 9))

    def scaled() -> None:
        adapter.scale *= 2

    @torch.inference_mode()
    def without_versions() -> None:
        factor(place)

    changes = (lambda: place.load_state_dict(stored), in_place, moved, replaced, scaled, without_versions)
    for change in (*changes, lambda: step(fused), lambda: step(each), lambda: adapter.freeze(-0.5)):
        factor(place)
        change()
        torch.testing.assert_close(factor(place).double(), dense(place), rtol=2e-6, atol=0)


def test_a_row_of_zeros_divides_by_one() -> None:
    place = layer()
    with torch.no_grad():
        place.base.weight[2] = 0
        place.live()[0].B[2] = 0
    assert torch.equal(factor(place)[2], place.live()[0].magnitude[2])  # type: ignore[index]
