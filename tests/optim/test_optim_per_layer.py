"""Stepping in the backward pass is the ordinary step, one gradient at a time."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from optim_models import differences, state_of, through_a_file
from optim_processes import together
from optim_tied import Tied, batches, optimizer_of
from torch import Tensor, nn

from eckart.optim import METHODS, LowRankOptimizer, StepInBackward, step_in_backward


def pair(method: str, dtype: torch.dtype = torch.float32, **options: Any) -> list[tuple[nn.Module, LowRankOptimizer]]:
    model = Tied().to(dtype)
    return [(each, optimizer_of(each, method, **options)) for each in (model, copy.deepcopy(model))]


def train(model: nn.Module, optimizer: LowRankOptimizer, tokens: Iterator[Tensor], accumulate: int = 1) -> None:
    for i, each in enumerate(tokens, start=1):
        (model(each) / accumulate).backward()
        if i % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()


def assert_same(one: tuple[nn.Module, LowRankOptimizer], other: tuple[nn.Module, LowRankOptimizer]) -> None:
    assert differences(one[0], other[0]) == []
    left, right = state_of(one[1]), state_of(other[1])
    assert left.keys() == right.keys()
    assert [key for key in left if not torch.equal(left[key], right[key])] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_it_gives_the_bits_of_ordinary_steps(method: str, dtype: torch.dtype) -> None:
    ordinary, layered = pair(method, dtype)
    step_in_backward(layered[1])
    for each in (ordinary, layered):
        train(*each, batches(7))
    assert_same(ordinary, layered)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_goes_from_one_mode_to_the_other_and_back(method: str) -> None:
    ordinary, layered = pair(method)
    train(*ordinary, batches(8))
    every = list(batches(8))
    model, first = layered
    train(model, first, iter(every[:2]))
    second = optimizer_of(model, method)
    second.load_state_dict(through_a_file(first.state_dict())[0])
    handle = step_in_backward(second)
    train(model, second, iter(every[2:5]))
    handle.remove()
    third = optimizer_of(model, method)
    third.load_state_dict(through_a_file(second.state_dict())[0])
    train(model, third, iter(every[5:]))
    assert_same(ordinary, (model, third))


def test_one_layers_gradient_is_alive_at_a_time() -> None:
    model, optimizer = pair("galore")[0]
    handle = step_in_backward(optimizer)
    alive: list[int] = []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(q.grad is not None for q in model.parameters()))
        )
    train(model, optimizer, batches(3))
    assert set(alive) == {0}  # these hooks come after the step's
    assert handle.largest == max(p.nbytes for p in model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_micro_batches_add_up_to_an_ordinary_step(method: str) -> None:
    ordinary, layered = pair(method, torch.float64)
    step_in_backward(layered[1], accumulate=3)
    for each in (ordinary, layered):
        train(*each, batches(12), accumulate=3)
    for (name, a), b in zip(ordinary[0].named_parameters(), layered[0].parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-8), name


@pytest.mark.parametrize(("method", "frees"), [("galore", True), ("golore", True), ("flora", False), ("fira", False)])
def test_micro_batches_add_up_in_the_subspace_where_nothing_else_is_used(method: str, frees: bool) -> None:
    model, optimizer = pair(method)[0]
    step_in_backward(optimizer, accumulate=2)
    source = batches(4)
    train(model, optimizer, (next(source) for _ in range(2)), accumulate=2)
    model(next(source)).backward()
    assert (model.wide.weight.grad is None) == frees
    assert model.wide.bias.grad is not None  # AdamW's


def test_a_last_step_of_fewer_micro_batches_is_made_by_step() -> None:
    ordinary, layered = pair("galore", torch.float64)
    step_in_backward(layered[1], accumulate=4)
    source = list(batches(6))
    for model, optimizer in (ordinary, layered):
        train(model, optimizer, iter(source[:4]), accumulate=4)
        for tokens in source[4:]:
            model(tokens).backward()
        optimizer.step()
    for a, b in zip(ordinary[0].parameters(), layered[0].parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


def test_zero_grad_forgets_micro_batches() -> None:
    ordinary, layered = pair("galore")
    step_in_backward(layered[1], accumulate=2)
    source = list(batches(5))
    for each in (ordinary, layered):
        train(*each, iter(source[:2]), accumulate=2)
    layered[0](source[2]).backward()
    layered[1].zero_grad()
    for each in (ordinary, layered):
        train(*each, iter(source[3:]), accumulate=2)
    for a, b in zip(ordinary[0].parameters(), layered[0].parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_more_backward_passes_than_were_said_are_an_error() -> None:
    model, optimizer = pair("galore")[0]
    step_in_backward(optimizer)
    tokens = next(batches(1))
    model(tokens).backward()
    with pytest.raises(RuntimeError, match=r"gradient 2 since the last optimizer\.step"):
        model(tokens).backward()


def test_checkpointing_without_reentry_gives_the_same() -> None:
    ordinary, _ = pair("fira")
    model = Tied(reentrant=False)
    model.load_state_dict(ordinary[0].state_dict())
    optimizer = optimizer_of(model, "fira")
    step_in_backward(optimizer)
    train(*ordinary, batches(5))
    train(model, optimizer, batches(5))
    assert_same(ordinary, (model, optimizer))


def test_a_gradient_in_parts_is_an_error_and_not_two_steps() -> None:
    model = Tied(reentrant=True)
    step_in_backward(optimizer_of(model, "galore"))
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        model(next(batches(1))).backward()


def test_schedulers_are_read_live() -> None:
    ordinary, layered = pair("galore")
    step_in_backward(layered[1])
    for model, optimizer in (ordinary, layered):
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 10)
        for tokens in batches(5):
            model(tokens).backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    assert_same(ordinary, layered)


def test_a_nan_is_named_and_its_parameter_stays() -> None:
    model, optimizer = pair("galore")[0]
    step_in_backward(optimizer)
    train(model, optimizer, batches(2))
    before = model.wide.weight.clone()
    broken = model.wide.weight.register_hook(lambda grad: grad.masked_fill(grad == grad.max(), float("nan")))
    with pytest.raises(ValueError, match=r"wide\.weight: 1 of 160 entries .* it was not changed"):
        model(next(batches(1))).backward()
    assert torch.equal(model.wide.weight, before)
    broken.remove()
    optimizer.zero_grad()
    train(model, optimizer, batches(1))
    assert not torch.equal(model.wide.weight, before)


def test_gradients_that_came_another_way_are_stepped_by_step() -> None:
    ordinary, layered = pair("galore")
    step_in_backward(layered[1])
    for model, optimizer in (ordinary, layered):  # as a distributed checkpoint fills the state before it loads
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        optimizer.zero_grad()
        train(model, optimizer, batches(3))
    assert state_of(layered[1])
    assert_same(ordinary, layered)


def norms(model: nn.Module, tokens: Tensor) -> list[Tensor]:
    grads = torch.autograd.grad(model(tokens), list(model.parameters()))
    return [grad.norm() for grad in grads]


@pytest.mark.parametrize("clip", ["matrix", "total"])
def test_clipping_holds_each_gradient_as_documented(clip: str) -> None:
    limit = 0.05
    model, optimizer = pair("galore", torch.float64, gap=1)[0]
    step_in_backward(optimizer, max_grad_norm=limit, clip=clip)
    reference = copy.deepcopy(model)
    plain = optimizer_of(reference, "galore", gap=1)
    last = torch.zeros(())
    for tokens in batches(4):
        own = norms(reference, tokens)
        reference(tokens).backward()
        for p, norm in zip(reference.parameters(), own, strict=True):
            assert p.grad is not None
            most = torch.maximum(norm, last) if clip == "total" else norm
            p.grad.mul_((limit / most).clamp(max=1))
        last = torch.stack(own).norm()
        plain.step()
        plain.zero_grad()
        train(model, optimizer, iter([tokens]))
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)  # norms are float32


@pytest.mark.parametrize("clip", ["matrix", "total"])
def test_clipping_goes_on_after_a_resume(clip: str) -> None:
    whole, cut = pair("fira")
    source = list(batches(6))
    step_in_backward(whole[1], max_grad_norm=0.05, clip=clip, accumulate=2)
    train(*whole, iter(source), accumulate=2)
    model, first = cut
    handle = step_in_backward(first, max_grad_norm=0.05, clip=clip, accumulate=2)
    train(model, first, iter(source[:4]), accumulate=2)
    handle.remove()
    second = optimizer_of(model, "fira")
    second.load_state_dict(through_a_file(first.state_dict())[0])
    step_in_backward(second, max_grad_norm=0.05, clip=clip, accumulate=2)
    train(model, second, iter(source[4:]), accumulate=2)
    assert_same(whole, (model, second))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate: 0"),
        ({"accumulate": True}, "accumulate: True"),
        ({"max_grad_norm": 0.0}, r"max_grad_norm: 0\.0"),
        ({"clip": "global"}, "clip: 'global'; one of total, matrix"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        step_in_backward(pair("galore")[0][1], **options)


def test_a_closure_a_second_handle_and_an_early_remove_are_refused() -> None:
    model, optimizer = pair("galore")[0]
    handle = step_in_backward(optimizer, accumulate=2)
    with pytest.raises(ValueError, match="closure"):
        optimizer.step(lambda: 0)
    with pytest.raises(ValueError, match="already"):
        step_in_backward(optimizer)
    train(model, optimizer, batches(2), accumulate=2)
    model(next(batches(1))).backward()
    with pytest.raises(ValueError, match="micro-batches wait"):
        handle.remove()
    optimizer.zero_grad()
    handle.remove()
    assert isinstance(step_in_backward(optimizer), StepInBackward)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch is built without gloo")
def test_it_gives_the_bits_of_ordinary_steps_under_fsdp_with_norms_that_agree(tmp_path: Path) -> None:
    told = [each["optim_tied.sharded"] for each in together(tmp_path, 2, "optim_tied.sharded")]
    for method, (ordinary, layered) in told[0]["weights"].items():
        assert all(torch.equal(a, b) for a, b in zip(ordinary, layered, strict=True)), method
        assert torch.equal(told[0]["norms"][method], told[1]["norms"][method]), method
    assert all("DDP averages gradients" in each["replica"] for each in told)
    assert all(each["freed"] for each in told)
