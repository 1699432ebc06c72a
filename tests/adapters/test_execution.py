"""Adapters in every way of running a model: compiled, checkpointed, cast, copied, hooked, functional."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eckart.adapters import adapt
from eckart.adapters.layers.place import places


class Block(nn.Module):
    """Three readers of one tensor, and one of what they make."""

    def __init__(self, width: int = 12, inplace: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.o = nn.Linear(width, width, bias=bias)
        self.act = nn.ReLU(inplace=inplace)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.act(self.q(x)), self.act(self.k(x)), self.v(x).tanh()
        return x + self.o(q * k + v)


class Net(nn.Module):
    """Blocks, run by a function that may checkpoint them."""

    def __init__(self, depth: int = 2, **options: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(**options) for _ in range(depth))
        self.through: Callable[[nn.Module, Tensor], Tensor] = lambda block, x: block(x)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = self.through(block, x)
        return x


def net(method: str = "lora", dropout: float = 0.0, dtype: torch.dtype = torch.float32, **options: Any) -> Net:
    """An adapted net whose adapters have trained a little, and whose groups are found."""
    torch.manual_seed(0)
    model = Net(**options).to(dtype)
    adapt(model, method, rank=2, targets="*", dropout=dropout)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model(batch(dtype))
    return model


def batch(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()


def plain(model: nn.Module) -> nn.Module:
    """The same model, with ordinary operations only."""
    for place in places(model).values():
        place._fusable = lambda live, x: False  # type: ignore[method-assign]
    return model


def gradients(model: nn.Module, x: Tensor | None = None, seed: int = 3) -> dict[str, Tensor]:
    """Output and gradients of one pass, from one seed of dropout."""
    x = batch() if x is None else x
    model.zero_grad()
    torch.manual_seed(seed)
    y = model(x)
    y.float().square().mean().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return {"output": y.detach(), "input": x.grad, **found}  # type: ignore[dict-item]


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, **(tolerance or {"atol": 1e-5, "rtol": 1e-4}), msg=name)


METHODS = ("lora", "dora", "lora-fa")


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("method", METHODS)
def test_a_compiled_model_has_no_graph_breaks_and_the_same_gradients(method: str, dropout: float) -> None:
    model = net(method, dropout)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = batch()
    torch.manual_seed(3)
    compiled(x).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    if not dropout:
        x = batch()
        model.zero_grad()
        compiled(x).square().mean().backward()
        got = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        expected = gradients(plain(net(method)))
        assert_same(got, {name: expected[name] for name in got})  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_compiled_model_in_machine_code_has_the_same_gradients() -> None:
    model = net("dora")
    compiled = torch.compile(model, fullgraph=True)
    assert_same(
        gradients(compiled), {f"_orig_mod.{k}" if "." in k else k: v for k, v in gradients(net("dora")).items()}
    )


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("method", METHODS)
def test_gradient_checkpointing_changes_no_gradient_and_keeps_the_groups(
    method: str, dropout: float, reentrant: bool
) -> None:
    model = net(method, dropout)
    expected = gradients(model)
    model.through = lambda block, x: checkpoint(block, x, use_reentrant=reentrant)  # type: ignore[assignment,return-value]
    assert_same(gradients(model), expected, atol=0, rtol=0)
    assert_same(gradients(model), expected, atol=0, rtol=0)
    assert "grouped with blocks.0.k, blocks.0.v" in repr(model.blocks[0].q)


def test_a_checkpointed_block_is_computed_again_as_it_was_from_the_first_pass_on() -> None:
    expected = gradients(net("lora"))
    model = net("lora")
    model.through = lambda block, x: checkpoint(block, x, use_reentrant=False)  # type: ignore[assignment,return-value]
    assert_same(gradients(model), expected, atol=0, rtol=0)
    gradients(model)
    assert "grouped with blocks.0.k, blocks.0.v" in repr(model.blocks[0].q)


@pytest.mark.parametrize("method", METHODS)
def test_autocast_to_half_precision_is_the_plain_operations_within_its_rounding(method: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = gradients(net(method)), gradients(plain(net(method)))
    assert got["blocks.0.q.adapters.default.B"].dtype == torch.float32
    assert_same(got, expected, atol=2e-2, rtol=5e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_a_base_of_half_precision_keeps_its_dtype_and_trains_float32_adapters(method: str, dtype: torch.dtype) -> None:
    got = gradients(net(method, dtype=dtype), batch(dtype))
    assert got["output"].dtype == got["input"].dtype == dtype
    wide = net(method, dtype=dtype).float()
    expected = gradients(wide)
    for name, value in expected.items():
        error = (got[name].float() - value).norm() / value.norm()
        assert error < 0.05, (name, float(error))


@pytest.mark.parametrize("method", METHODS)
def test_without_gradients_the_output_is_the_same_and_training_goes_on(method: str) -> None:
    model = net(method)
    expected = gradients(model)
    with torch.no_grad():
        assert torch.equal(model(batch()), expected["output"])
    with torch.inference_mode():
        torch.testing.assert_close(model(batch()), expected["output"])
    assert_same(gradients(model), expected, atol=0, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_copy_and_a_pickled_model_compute_the_same_apart_from_the_first(method: str) -> None:
    model = net(method)
    expected = gradients(model)
    stored = io.BytesIO()
    model.through = torch.nn.Module.__call__  # type: ignore[assignment]
    torch.save(model, stored)
    stored.seek(0)
    for twin in (copy.deepcopy(model), torch.load(stored, weights_only=False)):
        assert_same(gradients(twin), expected)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        assert_same(gradients(model), expected, atol=0, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_the_next_layer_may_overwrite_an_output(method: str) -> None:
    assert_same(gradients(net(method, inplace=True)), gradients(net(method)))


def test_hooks_on_the_wrapper_and_on_the_layer_inside_are_called() -> None:
    model = net()
    expected = gradients(model)
    called: list[str] = []
    layers: list[Any] = [model.blocks[0].k, model.blocks[0].k.base]
    for name, layer in zip(("wrapper", "base"), layers, strict=True):
        layer.register_forward_hook(lambda *_, name=name: called.append(name))
    assert_same(gradients(model), expected)
    assert called == ["base", "wrapper"]
    layers[0].register_forward_pre_hook(lambda _, args: (2 * args[0],))
    assert not torch.allclose(model(batch()), expected["output"])


@pytest.mark.parametrize("method", METHODS)
def test_functional_call_and_function_transforms_give_the_same_gradients(method: str) -> None:
    model = net(method)
    expected = gradients(model)
    x = batch().detach()
    trained = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters() if p.requires_grad}
    loss = torch.func.functional_call(model, trained, (x,)).square().mean()
    made = torch.autograd.grad(loss, list(trained.values()))
    assert_same(dict(zip(trained, made, strict=True)), {name: expected[name] for name in trained})
    transformed = torch.func.grad(lambda t: torch.func.functional_call(model, t, (x,)).square().mean())
    assert_same(transformed({name: t.detach() for name, t in trained.items()}), {n: expected[n] for n in trained})
    each = torch.func.vmap(lambda row: torch.func.functional_call(model, trained, (row,)))(x)
    torch.testing.assert_close(each, model(x))


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    model = net()
    x = batch()
    (slope,) = torch.autograd.grad(model(x).square().mean(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()


def test_several_adapters_with_dropout_and_bias_add_up_as_in_plain_operations() -> None:
    def two() -> Net:
        torch.manual_seed(0)
        model = Net()
        adapt(model, rank=2, targets="*", bias=True)
        adapt(model, "rslora", rank=3, targets="*", name="other")
        from eckart.adapters import activate

        activate(model, "default", "other")
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        model(batch())
        return model

    assert_same(gradients(two()), gradients(plain(two())))


def test_a_magnitude_with_bias_and_dropout_has_the_slopes_of_finite_differences() -> None:
    torch.manual_seed(0)
    model = Net(depth=1).double()
    adapt(model, "dora", rank=2, targets="*", dropout=0.4, bias=True)
    x = batch(torch.float64).detach()
    model(x)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad and p.ndim == 1}

    def loss() -> Tensor:
        torch.manual_seed(7)
        return model(x).square().sum()

    model.zero_grad()
    loss().backward()
    for name, parameter in named.items():
        step = torch.zeros_like(parameter)
        step[1] = 1e-6
        with torch.no_grad():
            parameter += step
            above = loss()
            parameter -= 2 * step
            below = loss()
            parameter += step
        assert float(parameter.grad[1]) == pytest.approx(float(above - below) / 2e-6, rel=1e-4, abs=1e-6), name


def test_dropout_is_the_same_from_the_same_seed_and_other_from_another() -> None:
    model = net(dropout=0.5)
    first = gradients(model, seed=3)
    assert_same(gradients(model, seed=3), first, atol=0, rtol=0)
    assert not torch.equal(gradients(model, seed=4)["output"], first["output"])


def test_a_weight_that_trains_beside_its_adapter_gets_its_gradient() -> None:
    model = net()
    weight = model.blocks[0].q.base.weight.requires_grad_()
    gradients(model)
    assert weight.grad is not None
    assert float(weight.grad.norm()) > 0
