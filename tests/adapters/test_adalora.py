"""AdaLoRA: the paper's schedule and scores as PEFT computes them, and a shrink that really frees what was pruned."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

from eckart.adapters import RankSchedule, adapt, orthogonality, shrink
from eckart.adapters.layers.place import adapters, places

OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9),
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.02),
    "amsgrad": lambda ps: torch.optim.AdamW(ps, lr=0.02, amsgrad=True),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, lr=0.05),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=0.01, momentum=0.5),
}


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 6))


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def data(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 10, generator=generator), torch.randn(16, 6, generator=generator)


def loss_of(model: nn.Module, step: int) -> Tensor:
    x, y = data(step)
    return (model(x) - y).square().mean()


def advance(
    model: nn.Module, optimizer: torch.optim.Optimizer, schedule: RankSchedule | None, start: int, stop: int
) -> None:
    for step in range(start, stop):
        loss_of(model, step).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        optimizer.zero_grad()


def begun(optimizer: str = "adam", steps: int = 12, stop: int = 12) -> tuple[nn.Module, Any, RankSchedule]:
    """A model in training whose budget has fallen from 12 triplets."""
    model = network()
    adapt(model, "adalora", rank=4)
    made = OPTIMIZERS[optimizer](trained(model))
    schedule = RankSchedule(model, steps=steps, target=2, start=2, final=4)
    advance(model, made, schedule, 0, stop)
    return model, made, schedule


def bytes_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    state = [t for each in optimizer.state.values() for t in each.values() if isinstance(t, Tensor) and t.ndim]
    return tuple(sum(t.untyped_storage().nbytes() for t in ts) for ts in (trained(model), state))  # type: ignore[return-value]


@pytest.mark.parametrize(("start", "final", "every"), [(0, 0, 1), (5, 10, 1), (3, 7, 4)])
def test_the_budget_falls_as_pefts(start: int, final: int, every: int) -> None:
    peft = pytest.importorskip("peft.tuners.adalora.layer")
    model = network()
    adapt(model, "adalora", rank=5)
    ours = RankSchedule(model, steps=40, target=2, start=start, final=final, every=every)
    theirs = object.__new__(peft.RankAllocator)
    theirs.peft_config = SimpleNamespace(tinit=start, tfinal=final, total_step=40, deltaT=every)
    theirs.init_bgt, theirs.target_bgt = 15, 6
    for step in range(1, 41):
        assert ours.budget(step) == theirs.budget_schedule(step)[0], step


def test_scores_and_pruned_triplets_are_pefts_on_the_same_training() -> None:
    peft = pytest.importorskip("peft")
    config = peft.AdaLoraConfig(
        init_r=4, target_r=2, tinit=2, tfinal=4, deltaT=1, total_step=14, lora_alpha=8, target_modules=["0", "2", "4"]
    )
    theirs = peft.get_peft_model(network(), config)
    model = network()
    adapt(model, "adalora", rank=4, alpha=8.0)
    with torch.no_grad():
        for name, adapter in adapters(model, "default"):
            layer = theirs.base_model.model[int(name)]
            adapter.P.copy_(layer.lora_B["default"])
            adapter.Q.copy_(layer.lora_A["default"])
            adapter.scale = 8.0 / (4 + 1e-5)
    ours = RankSchedule(model, steps=14, target=2, start=2, final=4)
    optimizers = [torch.optim.Adam(trained(each), lr=0.02) for each in (model, theirs)]
    allocator = theirs.base_model.rankallocator
    for step in range(1, 15):
        for each, optimizer in zip((model, theirs), optimizers, strict=True):
            loss_of(each, step).backward()
            optimizer.step()
        ours.step()
        theirs.base_model.update_and_allocate(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        if step < 10:  # PEFT forgets its averages after that
            for name, score in ours.scores().items():
                parts = {part: _their_score(allocator, f"{name}.lora_{part}.default") for part in "EAB"}
                theirs_score = parts["E"].flatten() + parts["A"].mean(1) + parts["B"].mean(0)
                torch.testing.assert_close(score, theirs_score, atol=1e-9, rtol=1e-3)
        for name, adapter in adapters(model, "default"):
            layer = theirs.base_model.model[int(name)]
            torch.testing.assert_close(adapter.Lambda, layer.lora_E["default"].flatten(), atol=1e-6, rtol=1e-4)
    assert sum(int(adapter.kept.sum()) for _, adapter in adapters(model, "default")) == 6


def _their_score(allocator: Any, ending: str) -> Tensor:
    (key,) = [key for key in allocator.exp_avg_ipt if key.endswith(ending)]
    return allocator._element_score(key)


def test_the_penalty_is_the_papers_mean_distance_from_orthonormal_factors() -> None:
    model = network()
    adapt(model, "adalora", rank=3)
    generator = torch.Generator().manual_seed(1)
    expected = []
    with torch.no_grad():
        for _, adapter in adapters(model, "default"):
            adapter.P.normal_(generator=generator)
            adapter.Q.normal_(generator=generator)
            expected += [
                (adapter.P.T @ adapter.P - torch.eye(3)).norm(),
                (adapter.Q @ adapter.Q.T - torch.eye(3)).norm(),
            ]
    penalty = orthogonality(model)
    torch.testing.assert_close(penalty, torch.stack(expected).mean())
    penalty.backward()
    assert all(adapter.P.grad is not None for _, adapter in adapters(model, "default"))


def test_a_schedule_resumes_bit_for_bit() -> None:
    model, _, _ = begun(steps=20, stop=20)
    half, optimizer, schedule = begun(steps=20, stop=9)
    again = network()
    adapt(again, "adalora", rank=4)
    again.load_state_dict(half.state_dict())
    resumed = OPTIMIZERS["adam"](trained(again))
    resumed.load_state_dict(optimizer.state_dict())
    following = RankSchedule(again, steps=20, target=2, start=2, final=4)
    state = schedule.state_dict()
    assert all(isinstance(value, Tensor) for value in state.values())
    following.load_state_dict(state)
    advance(again, resumed, following, 9, 20)
    for (name, p), q in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_a_state_of_other_ranks_is_refused() -> None:
    _, _, schedule = begun()
    other = network()
    adapt(other, "adalora", rank=3)
    with pytest.raises(ValueError, match="does not fit"):
        RankSchedule(other, steps=12, target=2, final=4).load_state_dict(schedule.state_dict())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_shrinking_frees_parameters_and_state_and_the_training_goes_on_as_it_would(kind: str) -> None:
    model, optimizer, schedule = begun(kind)
    kept = {name: adapter.kept.clone() for name, adapter in adapters(model, "default")}
    x, _ = data(99)
    with torch.no_grad():
        before = model(x)
    sizes, groups = bytes_of(model, optimizer), [id(group) for group in optimizer.param_groups]
    ranks = shrink(model, optimizer, schedule)
    assert ranks == {name: int(mask.sum()) for name, mask in kept.items() if mask.any()}
    assert sum(ranks.values()) == 6
    with torch.no_grad():
        torch.testing.assert_close(model(x), before, atol=1e-6, rtol=1e-6)
    after = bytes_of(model, optimizer)
    needed = sum(ranks[name] * (sum(places(model)[name].shape) + 1) * 4 for name in ranks)
    assert after[0] == needed < sizes[0]
    assert after[1] == needed * sizes[1] // sizes[0]
    assert [id(group) for group in optimizer.param_groups] == groups
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in trained(model)}
    whole, other, _ = begun(kind)
    advance(whole, other, None, 50, 51)
    advance(model, optimizer, None, 50, 51)
    full = dict(adapters(whole, "default"))
    for name, adapter in adapters(model, "default"):
        torch.testing.assert_close(adapter.P, full[name].P[:, kept[name]], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(adapter.Lambda, full[name].Lambda[kept[name]], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(adapter.Q, full[name].Q[kept[name]], atol=1e-6, rtol=1e-5)


def test_a_schedule_goes_on_after_a_shrink_with_the_averages_of_what_stayed() -> None:
    model, optimizer, schedule = begun(steps=20, stop=9)
    scores = {name: schedule.scores()[name][adapter.kept] for name, adapter in adapters(model, "default")}
    ranks = shrink(model, optimizer, schedule)
    for name, rank in ranks.items():
        assert torch.equal(schedule.scores()[name], scores[name])
        assert len(scores[name]) == rank
    advance(model, optimizer, schedule, 9, 20)
    assert sum(int(adapter.kept.sum()) for _, adapter in adapters(model, "default")) == 6
    assert sum(shrink(model, optimizer, schedule).values()) == 6


@pytest.mark.parametrize("stop", [3, 9])  # while averages are taken, and after
def test_a_schedule_refuses_what_was_shrunk_without_it_and_a_step_without_gradients_before_it_counts(stop: int) -> None:
    model, optimizer, schedule = begun(stop=stop)
    other = network()
    adapt(other, "adalora", rank=4)
    with pytest.raises(ValueError, match="of another model"):
        shrink(other, None, schedule)
    before = schedule.state_dict()
    if stop == 3:
        loss_of(model, stop).backward()
        trained(model)[-1].grad = None
        with pytest.raises(RuntimeError, match="has no gradient"):
            schedule.step()
    assert all(torch.equal(value, before[key]) for key, value in schedule.state_dict().items())
    shrink(model, optimizer, 1)
    loss_of(model, stop).backward()
    with pytest.raises(RuntimeError, match="behind the schedule's back"):
        schedule.step()


def test_a_matrix_without_triplets_loses_its_adapter_and_its_place_in_the_optimizer() -> None:
    model = network()
    adapt(model, "adalora", rank=2)
    optimizer = torch.optim.Adam([(n, p) for n, p in model.named_parameters() if p.requires_grad])
    advance(model, optimizer, None, 0, 2)
    assert shrink(model, optimizer, {"2": 0, "4": 1}) == {"0": 2, "4": 1}
    assert isinstance(model[2], nn.Linear)
    assert len(optimizer.param_groups[0]["params"]) == len(optimizer.param_groups[0]["param_names"]) == 6
    assert len(optimizer.state) == 6
    advance(model, optimizer, None, 2, 3)


def test_an_optimizer_that_cannot_follow_is_named_and_nothing_has_changed() -> None:
    model = network()
    adapt(model, "adalora", rank=4)
    optimizer = torch.optim.Adafactor(trained(model))
    advance(model, optimizer, None, 0, 2)
    before = [id(p) for p in trained(model)]
    with pytest.raises(TypeError, match="Adafactor keeps"):
        shrink(model, optimizer, 2)
    assert [id(p) for p in trained(model)] == before == [id(p) for p in optimizer.param_groups[0]["params"]]


@pytest.fixture
def group() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_under_ddp_it_refuses_also_from_inside(group: None) -> None:
    model, optimizer, schedule = begun()
    wrapped = nn.parallel.DistributedDataParallel(model)
    for each in (wrapped, model):
        with pytest.raises(RuntimeError, match="DistributedDataParallel"):
            shrink(each, optimizer, schedule)


@pytest.mark.filterwarnings("ignore")
def test_under_fsdp_it_refuses(group: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, _, schedule = begun()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(RuntimeError, match="FSDP"):
        shrink(model, None, schedule)


def test_steps_out_of_order_and_bad_numbers_say_what_to_do() -> None:
    model = network()
    adapt(model, "adalora", rank=4)
    with pytest.raises(RuntimeError, match="before zero_grad"):
        RankSchedule(model, steps=4, target=2).step()
    with pytest.raises(ValueError, match="target: an average rank of 9"):
        RankSchedule(model, steps=4, target=9)
    with pytest.raises(ValueError, match="start \\+ final"):
        RankSchedule(model, steps=4, target=2, start=2, final=2)
    with pytest.raises(ValueError, match="beta1"):
        RankSchedule(model, steps=4, target=2, beta1=1.0)
    plain = network()
    adapt(plain)
    with pytest.raises(ValueError, match="method='adalora'"):
        RankSchedule(plain, steps=4)
    with pytest.raises(ValueError, match="method='adalora'"):
        orthogonality(plain)
