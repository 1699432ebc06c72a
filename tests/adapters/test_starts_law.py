"""What every start keeps to: the base untouched, Δ = 0, the same seed the same bits, any weights."""

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart.adapters import METHODS, adapt
from eckart.adapters.layers.place import places
from families import families

STARTS = (
    "lora", "lora-gaussian", "lora-orthogonal", "pissa", "milora", "mica", "olora", "eva", "corda", "lora-ga",
    "lora-one", "lora-xs", "lora-sb", "loftq",
)  # fmt: skip
KINDS = ("sequential", "conv1d", "conv2d", "gpt2")


def loss(output: Any, batch: Any) -> Tensor:
    return getattr(output, "logits", output).float().square().mean()


def put(model: nn.Module, method: str, batches: list[Any], **options: Any) -> Any:
    if METHODS[method].wanted:
        options |= {"batches": batches, "loss": loss}
    if "original" in METHODS[method].options:
        options["original"] = {name: p.float() * 1.01 + 0.01 for name, p in model.named_parameters()}
    return adapt(model, method, rank=2, **options)


def deltas(model: nn.Module) -> Iterator[tuple[Any, Tensor]]:
    for place in places(model).values():
        (adapter,) = place.live()
        yield adapter, adapter.delta().detach()


def base_of(model: nn.Module) -> dict[str, Tensor]:
    return {
        name.replace(".base.", "."): p.detach().clone()
        for name, p in model.named_parameters()
        if ".adapters." not in name
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", STARTS)
def test_the_base_stays_bit_for_bit_and_the_change_is_rounding_unless_it_is_meant(method: str, kind: str) -> None:
    model, batches = families()[kind]()
    before = base_of(model)
    put(model, method, batches)
    after = base_of(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for adapter, D in deltas(model):
        B, A = adapter.pair()
        size = adapter.scale * B.norm() * A.norm()
        assert METHODS[method].moves == bool(D.abs().max() > 1e-6 * size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", STARTS)
def test_the_same_seed_gives_the_same_bits_however_many_start_at_a_time(method: str, kind: str) -> None:
    states = []
    threads = torch.get_num_threads()
    for count in (1, 1, 3):
        model, batches = families()[kind]()
        torch.set_num_threads(count)
        try:
            put(model, method, batches, generator=torch.Generator().manual_seed(7))
        finally:
            torch.set_num_threads(threads)
        states.append({name: p.detach() for name, p in model.named_parameters() if ".adapters." in name})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for name, expected in states[0].items():  # products in another order: rounding, and signs of directions
        torch.testing.assert_close(states[2][name].abs(), expected.abs(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("method", STARTS)
def test_weights_of_zero_start_and_train(method: str) -> None:
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 6))
    nn.init.zeros_(model[0].weight)
    x = torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
    put(model, method, [x])
    assert all(torch.isfinite(D).all() for _, D in deltas(model))
    model(x).sin().sum().backward()
    moved = [p.grad for _, p in model.named_parameters() if p.requires_grad]
    assert any(g is not None and bool(g.abs().max() > 0) for g in moved)


@pytest.mark.parametrize("method", STARTS)
def test_a_bfloat16_base_is_calculated_with_in_float32(method: str) -> None:
    exact, batches = families()["llama"]()
    rounded = copy.deepcopy(exact).bfloat16()
    exact.load_state_dict({name: value.float() for name, value in rounded.state_dict().items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        put(rounded, method, batches)
        put(exact, method, batches)
    adapters = [adapter for adapter, _ in deltas(rounded)]
    assert {parameter.dtype for adapter in adapters for parameter in adapter.parameters()} == {torch.float32}
    if METHODS[method].wanted:  # what bfloat16 layers read and their gradients differ
        return
    for got, (expected, _) in zip(adapters, deltas(exact), strict=True):
        for mine, theirs in zip(got.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", ["pissa", "milora", "olora", "corda", "lora-ga"])
def test_what_takes_a_start_out_does_so_to_the_last_bit_in_half_precision(method: str) -> None:
    model, batches = families()["sequential"]()
    model.bfloat16()
    put(model, method, [batch.bfloat16() for batch in batches], dtype=torch.bfloat16, alpha=3.0)  # s·B would round
    for place in places(model).values():
        (adapter,) = place.live()
        assert adapter.frozen_B is not None
        assert not adapter.delta().any()
        assert torch.equal(place.changed_weight(), place.weight_matrix())


@pytest.mark.parametrize("method", [name for name in STARTS if name not in ("eva", "corda")])
def test_embeddings_start_too(method: str) -> None:
    model = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 4))
    ids = torch.randint(30, (6, 5), generator=torch.Generator().manual_seed(0))
    before = model(ids)
    put(model, method, [ids], targets="*")
    assert len(places(model)) == 2
    if not METHODS[method].moves:
        torch.testing.assert_close(model(ids), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["pissa", "corda", "lora-ga"])
def test_each_group_of_a_convolution_starts_from_its_own_matrix(method: str) -> None:
    model, batches = families()["conv2d"]()
    put(model, method, batches, targets="grouped")
    (adapter,) = (adapter for adapter, _ in deltas(model))
    assert adapter.B.shape == (4, 3, 2)
    products = adapter.B @ adapter.A
    assert all((products[0] - products[i]).norm() > 0.1 * products[0].norm() for i in range(1, 4))


@pytest.mark.parametrize("method", STARTS)
def test_a_second_adapter_starts_as_it_would_alone(method: str) -> None:
    alone, batches = families()["llama"]()
    put(alone, method, batches)
    model, _ = families()["llama"]()
    adapt(model, "lora", rank=2, name="first")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    original = {name.replace(".base.", "."): p for name, p in model.named_parameters()}
    options = {"batches": batches, "loss": loss} if METHODS[method].wanted else {}
    options |= {"original": {k: p.float() * 1.01 + 0.01 for k, p in original.items()}} if method == "loftq" else {}
    adapt(model, method, rank=2, name="second", **options)  # type: ignore[arg-type]
    expected = {name: place.live()[0] for name, place in places(alone).items()}
    for name, place in places(model, "second").items():
        torch.testing.assert_close(place.live()[0].state_dict(), expected[name].state_dict(), atol=1e-5, rtol=1e-4)
