"""The optimizer's state: resumed bit for bit from any step, loaded as it was saved, and as large as its formula."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from optim_models import GAP, RANK, Zoo, batches, differences, loss_of, optimizer_for, state_of, through_a_file, train
from torch import Tensor, nn

from eckart.optim import METHODS, LowRankOptimizer
from families import families

STEPS = 2 * GAP


def resumed(build: Callable[[], nn.Module], saved: list[Any], method: str, **options: Any) -> Any:
    """A new model and a new optimizer with what was saved."""
    model = build()
    optimizer = optimizer_for(model, method, **options)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    return model, optimizer


def check_resume(build: Callable[[], nn.Module], data: list[Any], method: str, loss: Any, **options: Any) -> None:
    """Train with a checkpoint after each step, and go on from each of them."""
    model = build()
    optimizer = optimizer_for(model, method, **options)
    losses, saved = [], []
    for batch in data:
        saved.append(through_a_file(model.state_dict(), optimizer.state_dict()))
        losses += train(model, optimizer, [batch], loss)
    for step, each in enumerate(saved):
        again, other = resumed(build, each, method, **options)
        assert train(again, other, data[step:], loss) == losses[step:], f"resumed after step {step}"
        assert differences(model, again) == [], f"resumed after step {step}"
        assert all(torch.equal(t, state_of(other)[key]) for key, t in state_of(optimizer).items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_same_bit_for_bit_after_any_step(method: str, dtype: torch.dtype) -> None:
    check_resume(lambda: Zoo(dtype), (batches() * 2)[:STEPS], method, lambda model, batch: model(batch))


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "staggered"},
        {"moments": "8bit", "basis": "4bit", "schedule": "adaptive", "adapt_above": 0.1, "transport": "rotate"},
        {"inner": "lion", "limiter": "clip", "limit": 0.5},
        {"inner": "adafactor", "residual": "sign"},
        {"projector": "orthonormal", "basis": "seed", "residual": "sgd", "moments": "8bit"},
        {"projector": "coordinates", "basis": "seed", "residual": "norm-scaled", "transport": "rotate"},
        {"projector": "svd", "side": "left", "residual": "feedback"},
    ],
    ids=str,
)
def test_so_is_one_of_any_other_choice(options: dict[str, Any]) -> None:
    data = (batches() * 2)[:STEPS]
    check_resume(lambda: Zoo(torch.bfloat16), data, "galore", lambda model, batch: model(batch), **options)


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
@pytest.mark.parametrize("method", METHODS)
def test_so_is_one_of_every_family(method: str, family: str) -> None:
    data = (families()[family]()[1] * 3)[: GAP + 2]
    model, _ = families()[family]()
    optimizer = optimizer_for(model, method)
    train(model, optimizer, data[:2], loss_of)
    saved = through_a_file(model.state_dict(), optimizer.state_dict())
    losses = train(model, optimizer, data[2:], loss_of)
    again, other = resumed(lambda: families()[family]()[0], saved, method)
    assert train(again, other, data[2:], loss_of) == losses
    assert differences(model, again) == []


@pytest.mark.parametrize("method", METHODS)
def test_a_copy_and_a_pickle_of_the_optimizer_go_on_as_it_does(method: str) -> None:
    model = Zoo(torch.bfloat16)
    optimizer = optimizer_for(model, method)
    train(model, optimizer, batches())
    copies = [copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))]
    losses = train(model, optimizer, batches())
    for again, other in copies:
        assert train(again, other, batches()) == losses
        assert differences(model, again) == []


@pytest.mark.parametrize("method", METHODS)
def test_loading_keeps_each_type_and_copies(method: str) -> None:
    model = Zoo(torch.bfloat16)
    optimizer = optimizer_for(model, method)
    train(model, optimizer, batches())
    saved = copy.deepcopy(optimizer.state_dict())
    again = Zoo(torch.bfloat16)
    other = optimizer_for(again, method)
    other.load_state_dict(saved)
    before, after = state_of(optimizer), state_of(other)
    assert list(before) == list(after)
    assert all(after[key].dtype == t.dtype and torch.equal(after[key], t) for key, t in before.items())
    train(again, other, batches())
    kept = {(i, key): t for i, state in saved["state"].items() for key, t in state.items()}
    assert all(torch.equal(kept[key], t) for key, t in before.items()), "stepping changed what was loaded from"


def test_loading_takes_rates_and_gaps_over_and_calls_the_callers_hooks() -> None:
    optimizer = optimizer_for(Zoo(), "galore", lr=1e-2, gap=7)
    train(model := Zoo(), first := optimizer_for(model, "galore", lr=5e-3, gap=9), batches())
    seen: list[Any] = []
    optimizer.register_load_state_dict_pre_hook(lambda _, given: {**given, "state": {0: given["state"][0]}})
    optimizer.register_load_state_dict_post_hook(lambda one: seen.append(len(one.state)))
    optimizer.load_state_dict(first.state_dict())
    assert [(group["lr"], group["gap"]) for group in optimizer.param_groups] == [(5e-3, 9)] * 3
    assert seen == [1], "a hook before sees and changes what is loaded, a hook after sees what was"
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 1


def test_names_that_wrappers_changed_are_the_same_model() -> None:
    train(model := Zoo(), optimizer := optimizer_for(model, "galore"), batches())
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        group["param_names"] = [f"module._orig_mod.{name}" for name in group["param_names"]]
    other = optimizer_for(Zoo(), "galore")
    other.load_state_dict(saved)
    assert len(other.state) == len(optimizer.state)


HOST = 4 * 8  # step, since, basis_step, side


def basis(p: int, q: int, r: int) -> int:
    return 4 * q * r


def adam(p: int, q: int, r: int) -> int:
    return 2 * 4 * p * r


def adam_8bit(p: int, q: int, r: int) -> int:
    return 2 * (p * r + 4 * p * -(-r // 64))


BYTES: dict[str, Callable[[int, int, int], int]] = {
    "galore": lambda p, q, r: basis(p, q, r) + adam(p, q, r),
    "galore-8bit": lambda p, q, r: basis(p, q, r) + adam_8bit(p, q, r),
    "q-galore": lambda p, q, r: 132 * -(-q * r // 256) + adam_8bit(p, q, r) + 8,  # gap
    "fira": lambda p, q, r: basis(p, q, r) + adam(p, q, r) + 4,  # last_norm
    "apollo": lambda p, q, r: adam(p, q, r) + 4,
    "apollo-mini": lambda p, q, r: adam(p, q, r) + 4,
    "flora": lambda p, q, r: 4 * (p * r + p + q),
    "golore": lambda p, q, r: basis(p, q, r) + adam(p, q, r),
    "ldadam": lambda p, q, r: basis(p, q, r) + adam(p, q, r) + 4 * p * q,  # error
    "subtrack++": lambda p, q, r: basis(p, q, r) + adam(p, q, r) + 4,
    "osd": lambda p, q, r: 3 * basis(p, q, r) + adam(p, q, r) + 4,  # moments of the basis, and how many steps it made
    "frugal": lambda p, q, r: 8 * r + adam(p, q, r),  # columns
    "sumo": lambda p, q, r: basis(p, q, r) + 4 * p * r,
    "dion": lambda p, q, r: basis(p, q, r) + 4 * p * q,  # momentum
}


def bytes_of(state: dict[str, Tensor]) -> int:
    return sum(t.nbytes for t in state.values())


@pytest.mark.parametrize("side", ["smaller", "left", "right"])
@pytest.mark.parametrize("shape", [(40, 96), (96, 40), (70, 70)])
@pytest.mark.parametrize("method", METHODS)
def test_the_state_takes_the_bytes_of_its_formula(method: str, shape: tuple[int, int], side: str) -> None:
    W = nn.Parameter(torch.ones(shape))
    optimizer = LowRankOptimizer([W], rank=RANK, method=method, side=side, lr=1e-3)
    W.grad = torch.ones(shape)
    optimizer.step()
    m, n = shape
    p, q = (n, m) if side == "left" or (side == "smaller" and m < n) else (m, n)
    assert bytes_of(optimizer.state[W]) == BYTES[method](p, q, RANK) + HOST


def test_a_stack_and_a_convolution_take_those_of_their_matrices() -> None:
    stack, kernel = nn.Parameter(torch.ones(5, 12, 30)), nn.Parameter(torch.ones(16, 3, 5, 5))
    groups = [{"params": [stack], "stack": True}, {"params": [kernel]}]
    optimizer = LowRankOptimizer(groups, rank=RANK)
    for p in (stack, kernel):
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert bytes_of(optimizer.state[stack]) == 5 * BYTES["galore"](30, 12, RANK) + HOST
    assert bytes_of(optimizer.state[kernel]) == BYTES["galore"](75, 16, RANK) + HOST


def test_galore_on_a_llama_of_58_million_parameters_takes_312_mib() -> None:
    width, inner, words, layers, r = 512, 1376, 32000, 8, 128
    shapes = [(width, width)] * 4 + [(inner, width)] * 2 + [(width, inner)]
    matrices = [nn.Parameter(torch.empty(shape)) for shape in shapes * layers]
    rest = [nn.Parameter(torch.empty(shape)) for shape in [(words, width)] * 2 + [(width,)] * (2 * layers + 1)]
    optimizer = LowRankOptimizer([{"params": matrices, "rank": r}, {"params": rest, "rank": None}])
    for p in (*matrices, *rest):
        p.grad = torch.zeros(1).expand(p.shape)
    optimizer.step()
    taken = sum(bytes_of(state) for state in optimizer.state.values())
    square, oblong = 3 * width * r, width * r + 2 * inner * r
    floats = layers * (4 * square + 3 * oblong) + 2 * sum(p.numel() for p in rest)
    assert taken == 4 * floats + HOST * len(matrices) + 4 * len(rest)  # AdamW's step is a float
    assert taken / 2**20 == pytest.approx(312, abs=0.5)
