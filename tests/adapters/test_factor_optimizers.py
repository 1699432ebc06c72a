"""Optimizers for factors: their equations over several steps, what defines each, and that they are ordinary ones."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from eckart.adapters import activate, adapt, shrink
from eckart.adapters.optimizers import Alternating, FactorOptimizer, LoraFA, LoraPro, Riemannian, param_groups
from families import families

WRAPPERS: dict[str, Callable[..., FactorOptimizer]] = {
    "riemannian": Riemannian, "lora-fa": LoraFA, "lora-pro": LoraPro, "alternating": Alternating,
}  # fmt: skip


def problem(method: str = "lora", alpha: float = 6.0) -> tuple[nn.Module, Tensor]:
    """Two adapted layers in float64 with B away from zero, and inputs."""
    torch.manual_seed(0)  # two calls give one model
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 6)).double()
    adapt(model, method, rank=2, alpha=alpha, generator=generator)
    with torch.no_grad():
        for pair in _factors(model):
            pair[0].normal_(std=0.5, generator=generator)
    return model, torch.randn(9, 7, dtype=torch.float64, generator=generator)


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def wrapped(name: str, **options: Any) -> tuple[nn.Module, Tensor, FactorOptimizer]:
    """A problem with an Adam around which the wrapper is."""
    model, x = problem("lora-fa" if name == "lora-fa" else "lora")
    return model, x, WRAPPERS[name](torch.optim.AdamW(trained(model), lr=1e-2), model, **options)


def slope(model: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    (model(x) - 1).square().sum().backward()


def _factors(model: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
    return [(module.B, module.A) for module in model.modules() if hasattr(module, "B")]  # type: ignore[misc]


def written_out(name: str, B: Tensor, A: Tensor, g_B: Tensor | None, g_A: Tensor | None, s: float, turn: int) -> Any:
    """The equations of the papers, with plain inverses."""
    eye = torch.eye(len(A), dtype=A.dtype)
    inv = torch.linalg.inv
    if name == "riemannian":
        return g_B @ inv(A @ A.mT + 1e-2 * eye), inv(B.mT @ B + 1e-2 * eye) @ g_A
    if name == "lora-fa":
        return g_B @ inv(A @ A.mT + 1e-8 * eye) / s**2, None
    if name == "alternating":
        if turn % 2 == 0:
            return g_B @ inv(A @ A.mT + 1e-3 * eye) / s**2, None
        return None, inv(B.mT @ B + 1e-3 * eye) @ g_A / s**2
    K_B, K_A = inv(B.mT @ B + 1e-8 * eye), inv(A @ A.mT + 1e-8 * eye)
    right = -K_B @ g_A @ A.mT / s**2
    whole = torch.kron(B.mT @ B, eye) + torch.kron(eye, A @ A.mT)
    X = torch.linalg.solve(whole, right.flatten()).view_as(right)
    outside = torch.eye(len(B), dtype=B.dtype) - B @ K_B @ B.mT
    return outside @ g_B @ K_A / s**2 - B @ X, K_B @ g_A / s**2 + X @ A


@pytest.mark.parametrize("inner", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("name", WRAPPERS)
def test_five_steps_are_those_of_the_equations(name: str, inner: type) -> None:
    model, x = problem("lora-fa" if name == "lora-fa" else "lora")
    plain = copy.deepcopy(model)
    optimizer = WRAPPERS[name](inner(trained(model), lr=1e-3), model)
    expected = inner(trained(plain), lr=1e-3)
    for turn in range(5):
        slope(model, x, optimizer)
        optimizer.step()
        slope(plain, x, expected)
        before = [(B.detach().clone(), A.detach().clone()) for B, A in _factors(plain)]
        for B, A in _factors(plain):
            B.grad, A.grad = written_out(name, B.detach(), A.detach(), B.grad, A.grad, 3.0, turn)
        expected.step()
        if name == "alternating":
            _carry_written_out(plain, expected, before, turn)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-9, rtol=1e-6)


def _carry_written_out(model: nn.Module, optimizer: Any, before: list[tuple[Tensor, Tensor]], turn: int) -> None:
    for (B, A), (old_B, old_A) in zip(_factors(model), before, strict=True):
        eye = torch.eye(len(A), dtype=A.dtype)
        moment = optimizer.state.get(A if turn % 2 == 0 else B, {}).get("exp_avg")
        if moment is not None and turn % 2 == 0:
            moment.copy_(torch.linalg.inv(B.mT @ B + 1e-3 * eye) @ B.mT @ old_B @ moment)
        elif moment is not None:
            moment.copy_(moment @ old_A @ A.mT @ torch.linalg.inv(A @ A.mT + 1e-3 * eye))


def _grad(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def first_order(name: str, damping: float = 0.0, mixed: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """s(B g_A + g_B A) of one layer after the wrapper's rewriting, G, and the factors."""
    model, x = problem("lora-fa" if name == "lora-fa" else "lora")
    if mixed is not None:
        with torch.no_grad():
            for B, A in _factors(model):
                B.copy_(B @ mixed)
                A.copy_(torch.linalg.inv(mixed) @ A)
    optimizer = WRAPPERS[name](torch.optim.SGD(trained(model), lr=1.0), model, damping=damping)
    slope(model, x, optimizer)
    pair = optimizer.pairs[-1]
    g_B, g_A = list(optimizer.rewrite(optimizer.pairs))[-1]
    move = torch.zeros(len(pair.B), pair.A.shape[1], dtype=torch.float64)
    move = move if g_B is None else move + pair.scale * g_B @ pair.A.detach()
    move = move if g_A is None else move + pair.scale * pair.B.detach() @ g_A
    return move, _full_gradient(model, x), pair.B.detach(), pair.A.detach()


def _full_gradient(model: Any, x: Tensor) -> Tensor:
    """∂loss/∂W of the last layer."""
    hidden = model[:-1](x).detach()
    W = (model[-1].weight_matrix() + next(iter(model[-1].adapters.values())).delta()).detach().requires_grad_()
    (hidden @ W.mT + model[-1].base.bias - 1).square().sum().backward()
    assert W.grad is not None
    return W.grad


def test_riemannian_moves_the_product_alike_however_it_is_split(generator: torch.Generator) -> None:
    mixed = torch.randn(2, 2, dtype=torch.float64, generator=generator) + 2 * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(first_order("riemannian")[0], first_order("riemannian", mixed=mixed)[0])


def test_lora_pros_move_is_the_closest_to_the_full_gradient_that_factors_can_make() -> None:
    move, G, B, A = first_order("lora-pro")
    basis = torch.cat(
        (torch.kron(torch.eye(6, dtype=B.dtype), A.mT.contiguous()), torch.kron(B, torch.eye(5, dtype=B.dtype))), dim=1
    )  # rows of vec: dB ↦ dB A, dA ↦ B dA
    best = basis @ torch.linalg.lstsq(basis, G.flatten(), driver="gelsd").solution
    torch.testing.assert_close(move.flatten(), best, atol=1e-8, rtol=1e-6)


def test_lora_pro_changes_the_factors_gradients_as_little_as_the_move_allows(generator: torch.Generator) -> None:
    model, x = problem()
    optimizer = LoraPro(torch.optim.SGD(trained(model), lr=1.0), model, damping=0.0)
    slope(model, x, optimizer)
    pair = optimizer.pairs[0]
    g_B, g_A = next(iter(optimizer.rewrite(optimizer.pairs)))
    assert g_B is not None
    assert g_A is not None
    target = torch.cat((_grad(pair.B).flatten(), _grad(pair.A).flatten()))
    found = torch.cat((g_B.flatten(), g_A.flatten())) - target
    for _ in range(5):
        X = 0.1 * torch.randn(2, 2, dtype=torch.float64, generator=generator)
        other = torch.cat(((g_B - pair.B @ X).flatten(), (g_A + X @ pair.A).flatten())) - target
        assert found.norm() < other.norm()


@pytest.mark.parametrize("name", ["lora-fa", "alternating"])
def test_a_b_that_moves_alone_moves_closest_to_the_full_gradient(name: str) -> None:
    move, G, _, A = first_order(name)
    torch.testing.assert_close(move, G @ torch.linalg.pinv(A) @ A, atol=1e-9, rtol=1e-6)


def test_alternating_rests_one_factor_and_keeps_what_its_momentum_means_for_the_product() -> None:
    model, x = problem()
    inner = torch.optim.SGD(trained(model), lr=1e-2, momentum=0.9)
    optimizer = Alternating(inner, model, damping=0.0)
    for _ in range(2):
        slope(model, x, optimizer)
        optimizer.step()
    pair = optimizer.pairs[0]
    A, old, momentum = pair.A.detach().clone(), pair.B.detach().clone(), inner.state[pair.A]["momentum_buffer"].clone()
    slope(model, x, optimizer)
    optimizer.step()
    assert torch.equal(pair.A, A)
    assert not torch.equal(pair.B, old)
    B = pair.B.detach()
    projected = B @ torch.linalg.pinv(B) @ (old @ momentum)
    torch.testing.assert_close(B @ inner.state[pair.A]["momentum_buffer"], projected, atol=1e-9, rtol=1e-6)


def test_the_momentum_of_an_adapter_that_does_not_act_stays() -> None:
    model, x = nn.Sequential(nn.Linear(7, 5)), torch.ones(3, 7)
    for name in ("law", "code"):
        adapt(model, rank=2, name=name)
    factors = [p for key, p in model.named_parameters() if key.endswith((".A", ".B"))]
    optimizer = Alternating(torch.optim.SGD(factors, lr=0.1, momentum=0.9), model)
    kept: list[Tensor] = []
    for name in ("law", "code"):
        activate(model, name)
        for _ in range(4):
            slope(model, x, optimizer)
            optimizer.step()
        kept += [optimizer.state[p]["momentum_buffer"].clone() for p in factors[:2]]
    assert torch.equal(kept[0], kept[2])
    assert torch.equal(kept[1], kept[3])
    assert kept[0].any()


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_goes_on_with_the_factors_that_shrink_leaves(name: str) -> None:
    model, x, optimizer = wrapped(name)
    slope(model, x, optimizer)
    optimizer.step()
    shrink(model, optimizer, {"0": 0, "2": 1})
    assert [(pair.B, pair.A) for pair in optimizer.pairs] == _factors(model)
    other = copy.deepcopy(model)
    again = WRAPPERS[name](torch.optim.AdamW(trained(other)), other)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, own in ((model, optimizer), (other, again)):
        slope(each, x, own)
        own.step()
    assert all(torch.equal(p, q) for p, q in zip(trained(model), trained(other), strict=True))


def test_a_step_that_a_scaler_skips_is_not_a_turn_and_others_are_those_of_unscaled_gradients() -> None:
    results = []
    for scaled in (False, True):
        model, x, optimizer = wrapped("alternating")
        model, x = model.float(), x.float()
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=scaled)
        for step in range(4):
            optimizer.zero_grad()
            scaler.scale((model(x) - 1).square().sum() * (torch.inf if scaled and step == 1 else 1.0)).backward()
            if scaled or step != 1:
                scaler.step(optimizer)
                scaler.update()
        assert optimizer.param_groups[0]["turn"] == 3
        results.append(trained(model))
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("name", WRAPPERS)
def test_gradients_are_as_they_were_after_a_step_and_a_closure_runs_once(name: str) -> None:
    model, x, optimizer = wrapped(name)
    calls = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model(x) - 1).square().sum()
        loss.backward()
        calls.append({parameter: parameter.grad.clone() for parameter in trained(model)})  # type: ignore[union-attr]
        return loss

    assert optimizer.step(closure) > 0
    assert len(calls) == 1
    assert all(torch.equal(parameter.grad, grad) for parameter, grad in calls[0].items())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_run_resumed_in_the_middle_is_bit_for_bit_the_same(name: str) -> None:
    model, x, optimizer = wrapped(name)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    for step in range(6):
        if step == 3:
            file = io.BytesIO()
            torch.save((model.state_dict(), optimizer.state_dict(), schedule.state_dict()), file)
        slope(model, x, optimizer)
        optimizer.step()
        schedule.step()
    again, x, resumed = wrapped(name)
    later = torch.optim.lr_scheduler.StepLR(resumed, 2, 0.5)
    file.seek(0)
    for part, state in zip((again, resumed, later), torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    for _ in range(3):
        slope(again, x, resumed)
        resumed.step()
        later.step()
    assert resumed.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == 1e-2 * 0.5**3
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_checkpoint_fits_with_and_without_the_wrapper() -> None:
    model, x, optimizer = wrapped("riemannian")
    slope(model, x, optimizer)
    optimizer.step()
    plain = torch.optim.AdamW(trained(model), lr=1.0)
    plain.load_state_dict(optimizer.state_dict())
    assert plain.param_groups[0]["lr"] == 1e-2
    optimizer.load_state_dict(plain.state_dict())
    for _ in range(2):
        assert optimizer.state is optimizer.inner.state
        assert optimizer.param_groups is optimizer.inner.param_groups
        optimizer.inner.load_state_dict(plain.state_dict())


class NoHostRead(TorchDispatchMode):
    """Fails at whatever would wait for a device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        waits = (aten._local_scalar_dense, aten.nonzero, aten.equal, aten._linalg_eigh, aten._linalg_svd,
                 aten._linalg_check_errors)  # fmt: skip
        assert function.overloadpacket not in waits
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", WRAPPERS)
def test_no_wrapper_reads_from_the_device(name: str) -> None:
    model, x = problem("lora-fa" if name == "lora-fa" else "lora")
    optimizer = WRAPPERS[name](torch.optim.SGD(trained(model), lr=1e-2, momentum=0.9), model)
    slope(model, x, optimizer)
    with NoHostRead():
        optimizer.step()
        optimizer.step()


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_fresh_start_in_half_precision_gives_finite_steps_that_lower_the_loss(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 8)).bfloat16()
    adapt(model, "lora-fa" if name == "lora-fa" else "lora", rank=4, dtype=torch.bfloat16, generator=generator)
    optimizer = WRAPPERS[name](torch.optim.AdamW(trained(model), lr=1e-2), model)
    x = torch.randn(32, 16, generator=generator).bfloat16()
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (model(x).float() - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(torch.isfinite(parameter).all() for parameter in trained(model))
    assert losses[-1] < 0.8 * losses[0]


def test_stacks_are_treated_matrix_by_matrix() -> None:
    model, batches = families()["conv1d"]()
    adapt(model, rank=2)
    for B, _ in _factors(model):
        nn.init.normal_(B)
    optimizer = Riemannian(torch.optim.SGD(trained(model), lr=1.0), model)
    model(batches[0]).square().mean().backward()
    stacked = [index for index, pair in enumerate(optimizer.pairs) if pair.B.ndim == 3]
    assert stacked
    for index in stacked:
        pair = optimizer.pairs[index]
        g_B, _ = list(optimizer.rewrite(optimizer.pairs))[index]
        assert g_B is not None
        for k in range(len(pair.B)):
            A = pair.A[k].detach()
            expected = _grad(pair.B)[k] @ torch.linalg.inv(A @ A.mT + 1e-2 * torch.eye(len(A)))
            torch.testing.assert_close(g_B[k], expected, atol=1e-5, rtol=1e-4)


def test_transformers_trainer_takes_a_wrapper_as_it_is(tmp_path: Any) -> None:
    from transformers import Trainer, TrainingArguments

    model, batches = families()["llama"]()
    adapt(model, rank=2)
    optimizer = Alternating(torch.optim.AdamW(param_groups(model, 1e-2, plus=16)), model)
    rows = [{key: value[i] for key, value in batch.items()} for batch in batches for i in range(3)]
    arguments = TrainingArguments(str(tmp_path), max_steps=4, report_to=[], save_strategy="no", use_cpu=True,
                                  disable_tqdm=True)  # fmt: skip
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, 4)
    Trainer(model, arguments, train_dataset=rows, optimizers=(optimizer, schedule)).train()
    assert optimizer.param_groups[0]["turn"] == 4
    assert optimizer.param_groups[0]["lr"] == pytest.approx(5e-3)
    assert any(B.abs().max() > 0 for B, _ in _factors(model))


def test_groups_give_each_parameter_once_at_the_rate_of_its_part() -> None:
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 4), nn.Linear(4, 2))
    adapt(model, "dora", rank=2, targets=["0", "1"], modules_to_save="2")
    groups = {group["name"]: group for group in param_groups(model, 1.0, plus=16, embeddings=1e-3, weight_decay=0.1)}
    rates = {name: (group["lr"], group["weight_decay"], len(group["params"])) for name, group in groups.items()}
    assert rates == {
        "factors": (1.0, 0.1, 1),
        "B": (16.0, 0.1, 1),
        "embeddings": (1e-3, 0.1, 2),
        "vectors": (1.0, 0.0, 2),
        "saved": (1.0, 0.1, 1),
        "saved vectors": (1.0, 0.0, 1),
    }
    assert {id(p) for g in groups.values() for p in g["params"]} == {id(p) for p in trained(model)}


def test_the_outer_factors_of_a_compressed_deep_lora_have_their_own_rate() -> None:
    model = nn.Sequential(nn.Linear(6, 4))
    adapt(model, "deep-lora-compressed", rank=2, batches=[torch.ones(3, 6)], loss=lambda y, batch: y.square().sum())
    found = {group["name"]: (group["lr"], len(group["params"])) for group in param_groups(model, 1e-2)}
    assert found == {"factors": (1e-2, 3), "outer": (1e-4, 2)}


def test_errors_name_the_argument_and_the_remedy() -> None:
    model = nn.Sequential(nn.Linear(6, 4))
    with pytest.raises(ValueError, match="it has no adapters"):
        param_groups(model.requires_grad_(False), 1e-3)
    adapt(model, "deep-lora", rank=2)
    activate(model)
    with pytest.raises(ValueError, match="nothing trains"):
        param_groups(model, 1e-3)
    activate(model, "default")
    with pytest.raises(ValueError, match="plus: -1"):
        param_groups(model, 1e-3, plus=-1)
    with pytest.raises(ValueError, match="no factor of a pair"):
        Riemannian(torch.optim.SGD(trained(model), lr=1.0), model)
    other, _ = problem()
    with pytest.raises(ValueError, match="'lora-fa'"):
        LoraFA(torch.optim.SGD(trained(other), lr=1.0), other)
    with pytest.raises(ValueError, match="damping"):
        Riemannian(torch.optim.SGD(trained(other), lr=1.0), other, damping=-1.0)
    sharded, _ = problem()
    _factors(sharded)[0][0].full_tensor = lambda: None  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="sharded"):
        Riemannian(torch.optim.SGD(trained(sharded), lr=1.0), sharded)
    fixed, _ = problem("lora-fa")
    for both in (LoraPro, Alternating):
        with pytest.raises(ValueError, match="LoraFA"):
            both(torch.optim.SGD(trained(fixed), lr=1.0), fixed)
