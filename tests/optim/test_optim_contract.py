"""What every method of the optimizer keeps to, on a model with parameters of each kind and on those of all families."""

from typing import Any

import pytest
import torch
from optim_models import GAP, Zoo, batches, differences, loss_of, optimizer_for, state_of, train
from torch.distributed.checkpoint.state_dict import _init_optim_state

from eckart.optim import METHODS, PROJECTORS, LowRankOptimizer
from families import families

REFRESHING = [
    name for name, row in METHODS.items() if PROJECTORS[row.projector].renew is not None and row.options()["gap"] > 1
]


@pytest.mark.parametrize("family", sorted(families()))
@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls_in_every_family(method: str, family: str) -> None:
    model, data = families()[family]()
    optimizer = optimizer_for(model, method, lr=1e-3)
    losses = train(model, optimizer, [data[0]] * 6, loss_of)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls_in_other_types_and_states_are_float32_or_the_larger_type(
    method: str, dtype: torch.dtype
) -> None:
    model = Zoo(dtype)
    optimizer = optimizer_for(model, method)
    losses = train(model, optimizer, batches(1) * 12)
    assert losses[-1] < losses[0]
    kept = {
        t.dtype
        for (_, key), t in state_of(optimizer).items()
        if t.is_floating_point() and key != "step" and not key.endswith("_scales")
    }
    assert kept == {torch.float64 if dtype == torch.float64 else torch.float32}
    assert {p.dtype for p in model.parameters()} == {dtype}


@pytest.mark.parametrize("method", METHODS)
def test_the_state_is_flat_tensors_with_storage_of_their_own(method: str) -> None:
    model = Zoo()
    optimizer = optimizer_for(model, method)
    train(model, optimizer, batches() * 2)
    seen: dict[int, Any] = {p.untyped_storage().data_ptr(): "a weight" for p in model.parameters()}
    for key, t in state_of(optimizer).items():
        assert type(t) is torch.Tensor, key
        assert t.untyped_storage().nbytes() == t.nbytes, f"{key} keeps more alive than itself"
        assert t.untyped_storage().data_ptr() not in seen, f"{key} is the memory of {seen[t.data_ptr()]}"
        seen[t.untyped_storage().data_ptr()] = key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_the_callers_gradient_is_as_it_was(method: str, dtype: torch.dtype) -> None:
    model = Zoo(dtype)
    optimizer = optimizer_for(model, method, weight_decay=0.1)
    for batch in batches() * 2:
        optimizer.zero_grad()
        model(batch).backward()
        before = [(p.grad, p.grad.clone()) for p in model.parameters() if p.grad is not None]
        optimizer.step()
        for p, (grad, copy) in zip(model.parameters(), before, strict=True):
            assert p.grad is grad
            assert torch.equal(grad, copy)


@pytest.mark.parametrize("method", METHODS)
def test_two_runs_from_one_seed_agree_bit_for_bit_and_another_seed_is_another_run(method: str) -> None:
    models = [Zoo(torch.bfloat16) for _ in range(3)]
    for model, seed in zip(models, (7, 7, 8), strict=True):
        train(model, optimizer_for(model, method, seed=seed), batches() * 2)
        torch.rand(3)  # nothing hangs on the global generator
    assert differences(models[0], models[1]) == []
    assert differences(models[0], models[2]) != []


@pytest.mark.parametrize("method", REFRESHING)
def test_a_zero_gradient_never_renews_a_basis_and_the_next_one_does(method: str) -> None:
    model = Zoo()
    optimizer = optimizer_for(model, method)
    train(model, optimizer, batches())
    before = {key: t.clone() for key, t in state_of(optimizer).items()}
    for _ in range(2 * GAP):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    after = state_of(optimizer)
    bases = [key for key in after if key[1].startswith("basis")]
    assert bases
    assert all(torch.equal(before[key], after[key]) for key in bases)
    train(model, optimizer, batches(1))
    steps = [(state["step"], state["basis_step"]) for state in optimizer.state.values() if "basis_step" in state]
    assert all(int(step) == int(basis) for step, basis in steps)


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoints_first_step_of_zeros_fills_the_state_and_counts_for_nothing(method: str) -> None:
    plain, filled = Zoo(torch.bfloat16), Zoo(torch.bfloat16)
    usual = optimizer_for(plain, method, weight_decay=0.1)
    optimizer = optimizer_for(filled, method, weight_decay=0.1)
    _init_optim_state(optimizer)
    assert differences(plain, filled) == []
    made = {key: (t.shape, t.dtype) for key, t in state_of(optimizer).items()}
    for p in filled.parameters():  # and a second one, at the full rate
        p.grad = torch.zeros_like(p)
    optimizer.step()
    train(plain, usual, batches())
    train(filled, optimizer, batches())
    assert made == {key: (t.shape, t.dtype) for key, t in state_of(usual).items()}
    assert differences(plain, filled) == []
    assert all(torch.equal(t, state_of(optimizer)[key]) for key, t in state_of(usual).items())


@pytest.mark.parametrize("method", METHODS)
def test_a_parameter_without_a_gradient_stays_and_gets_no_state(method: str) -> None:
    model = Zoo()
    optimizer = optimizer_for(model, method, weight_decay=0.1)
    model(batches()[0]).backward()
    model.wide.weight.grad = None
    before = model.wide.weight.clone()
    optimizer.step()
    assert torch.equal(model.wide.weight, before)
    assert model.wide.weight not in optimizer.state or not optimizer.state[model.wide.weight]


@pytest.mark.parametrize("method", METHODS)
def test_weight_decay_alone_shrinks_matrices_once_a_basis_is_found(method: str) -> None:
    model = Zoo()
    optimizer = optimizer_for(model, method, lr=1e-3, weight_decay=0.5)
    free = Zoo()
    usual = optimizer_for(free, method, lr=1e-3)
    train(model, optimizer, batches(1))
    train(free, usual, batches(1))
    assert torch.allclose(free.wide.weight - model.wide.weight, 5e-4 * Zoo().wide.weight, atol=1e-6)
    assert torch.equal(free.wide.bias, model.wide.bias), "biases have no decay by default"


@pytest.mark.parametrize("method", METHODS)
def test_any_scheduler_drives_the_rate(method: str) -> None:
    model = Zoo()
    optimizer = optimizer_for(model, method, lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = Zoo()
    train(model, optimizer, batches())
    scheduler.step()
    assert differences(before, model) == []


def test_one_optimizer_holds_groups_of_different_methods() -> None:
    model = Zoo()
    groups = [
        {"params": [model.wide.weight], "rank": 2},
        {"params": [model.tall.weight], "rank": 3, "residual": "norm-scaled", "limiter": "growth"},
        {"params": [model.table.weight], "rank": None},
    ]
    optimizer = LowRankOptimizer(groups, lr=1e-2)
    losses = train(model, optimizer, batches(1) * 10)
    assert losses[-1] < losses[0]
    assert [state["exp_avg"].shape[-1] for state in optimizer.state.values()] == [2, 3, 8]
    assert ["last_norm" in state for state in optimizer.state.values()] == [False, True, False]
