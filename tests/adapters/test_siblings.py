"""Which layers are computed together, and that the result is right whatever the model then does."""

import sys
from collections.abc import Callable
from threading import Thread

import pytest
import torch
from torch import Tensor, nn

from eckart.adapters import adapt, disabled
from eckart.adapters.layers.place import places


class Readers(nn.Module):
    """Two layers that read one tensor, by default."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(6, 5), nn.Linear(6, 5)
        self.calls: Callable[[Readers, Tensor], Tensor] = lambda m, x: m.q(x) + m.k(x).tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.calls(self, x)


def readers(fused: bool = True) -> Readers:
    torch.manual_seed(0)
    model = Readers()
    adapt(model, rank=2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    if not fused:
        for place in places(model).values():
            place._fusable = lambda live, x: False  # type: ignore[method-assign]
    return model


X = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
Y = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))


def is_right(model: Readers, *inputs: Tensor) -> bool:
    """Whether outputs and gradients are those of ordinary operations."""
    twin = readers(fused=False)
    twin.calls = model.calls
    twin.load_state_dict(model.state_dict())
    same = []
    for x in inputs or (X, Y):
        for each in (model, twin):
            each.zero_grad()
        got, expected = model(x), twin(x)
        got.square().sum().backward()
        expected.square().sum().backward()
        same.append(torch.allclose(got, expected, atol=1e-5))
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            same.append(
                (a.grad is None) == (b.grad is None) and (a.grad is None or torch.allclose(a.grad, b.grad, atol=1e-4))
            )
    return all(same)


def is_grouped(model: Readers) -> bool:
    return "grouped with k" in repr(model.q)


def test_layers_that_read_one_tensor_are_grouped_after_the_first_pass_and_say_so() -> None:
    model = readers()
    assert not is_grouped(model)
    assert is_right(model)
    assert is_grouped(model)
    assert is_right(model)


def test_a_sibling_called_with_another_tensor_is_right_and_ends_the_group_with_a_reason() -> None:
    model = readers()
    assert is_right(model)
    model.calls = lambda m, x: m.q(x) + m.k(2 * x).tanh()
    for _ in range(3):
        assert is_right(model)
    assert not is_grouped(model)
    assert "computed apart: its siblings were not called with one tensor each time" in repr(model.k)


def test_a_sibling_that_is_not_called_is_right_and_ends_the_group() -> None:
    model = readers()
    assert is_right(model)
    model.calls = lambda m, x: m.q(x)
    for _ in range(3):
        assert is_right(model)
    assert not is_grouped(model)


def test_one_pass_that_breaks_off_leaves_the_group() -> None:
    model = readers()
    assert is_right(model)
    model.q(X)
    assert is_right(model)
    assert is_grouped(model)


def test_other_orders_and_shared_layers_are_right() -> None:
    for calls in (
        lambda m, x: m.k(x) + m.q(x).tanh(),
        lambda m, x: m.q(x) + m.q(x.tanh()) + m.k(x),
        lambda m, x: m.q(x) * m.q(x) + m.k(x),
        lambda m, x: m.q(x) + m.k(x) + m.q(2 * x) + m.k(2 * x),
    ):
        model = readers()
        model.calls = calls
        for _ in range(3):
            assert is_right(model)


def test_a_tensor_that_is_overwritten_between_the_calls_is_another_tensor() -> None:
    model = readers()
    assert is_right(model)

    def calls(m: Readers, x: Tensor) -> Tensor:
        x = x.clone()
        first = m.q(x).detach()
        return first + m.k(x.mul_(2))

    model.calls = calls
    for _ in range(3):
        assert is_right(model)


@pytest.mark.parametrize("grouped", [True, False])
def test_nothing_made_in_another_state_is_handed_out(grouped: bool) -> None:
    model = readers()
    if grouped:
        model(X)
    with torch.no_grad():
        model.q(X)
    assert model.k(X).requires_grad
    expected = readers(fused=False)
    model(X)
    model.q(X)
    with torch.no_grad():
        for each in (model, expected):
            for parameter in each.k.adapters.parameters():
                parameter.mul_(2)
    assert torch.allclose(model.k(X), expected.k(X), atol=1e-5)
    model.q(X)
    with disabled(model):
        assert torch.equal(model.k(X), model.k.base(X))


def test_groups_hold_no_output_after_a_pass() -> None:
    model = readers()
    model(X)
    model(X)
    group = model.q.siblings._groups[model.q]
    assert group.waiting is None


def test_groups_are_found_anew_when_more_layers_are_adapted() -> None:
    torch.manual_seed(0)
    model = Readers()
    model.calls = lambda m, x: m.q(x) + m.k(x)
    adapt(model, rank=2, targets="q", name="one")
    model(X)
    adapt(model, rank=2, name="two")
    model(Y)
    assert is_grouped(model)


def test_threads_that_share_a_model_each_get_their_own_outputs() -> None:
    model = readers()
    inputs = [torch.randn(3, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    expected = [readers(fused=False)(x) for x in inputs]
    wrong: list[object] = []

    def call(x: Tensor, y: Tensor) -> None:
        try:
            with torch.no_grad():
                wrong.extend(index for index in range(200) if not torch.allclose(model(x), y, atol=1e-5))
        except Exception as error:
            wrong.append(error)

    model(X)
    model.q.siblings.dissolve = lambda *_: None  # type: ignore[method-assign]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [Thread(target=call, args=pair) for pair in zip(inputs, expected, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
