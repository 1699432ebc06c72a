"""ReLoRA: restarts keep the function, stack what was learned, reset the optimizer; the rate is a jagged cosine."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from eckart.adapters import adapt, jagged_cosine, load, restart, save
from eckart.adapters.layers.place import adapters


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 6))


pytestmark = pytest.mark.filterwarnings("ignore:the frozen part")


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
    for step in range(start, stop):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(16, 10, generator=generator), torch.randn(16, 6, generator=generator)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()


def relora() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = network()
    adapt(model, "relora", rank=2)
    optimizer = torch.optim.Adam(trained(model), lr=0.02)
    advance(model, optimizer, 0, 5)
    return model, optimizer


def test_a_restart_keeps_the_outputs_and_the_change_is_the_sum_of_all_pairs() -> None:
    model, optimizer = relora()
    x = torch.randn(4, 10)
    finished: dict[str, list[Tensor]] = {}
    for begin in (5, 10):
        before = model(x).detach()
        for name, adapter in adapters(model, "default"):
            finished.setdefault(name, []).append((adapter.scale * adapter.B @ adapter.A).detach().clone())
        restart(model, optimizer, generator=torch.Generator().manual_seed(begin))
        torch.testing.assert_close(model(x), before, atol=1e-5, rtol=1e-5)
        advance(model, optimizer, begin, begin + 5)
    for name, adapter in adapters(model, "default"):
        now = adapter.scale * adapter.B @ adapter.A
        torch.testing.assert_close(adapter.delta(), sum(finished[name]) + now, atol=1e-6, rtol=1e-5)
        assert torch.linalg.matrix_rank(adapter.delta().detach(), rtol=1e-5) == 6  # three pairs of rank 2
        assert adapter.frozen_B is not None
        assert adapter.frozen_B.shape[1] == 4


def test_a_restart_prunes_the_moments_of_the_factors_and_leaves_the_step() -> None:
    model, optimizer = relora()
    shares = {}
    for pruned in (0.5, 1.0):
        restart(model, optimizer, pruned=pruned)
        zeros = [
            (state[key] == 0).float().mean() for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")
        ]
        shares[pruned] = min(zeros), max(zeros)
        assert all(state["step"] == 5 for state in optimizer.state.values())
    assert 0.5 <= shares[0.5][0] <= shares[0.5][1] < 0.75
    assert shares[1.0] == (1, 1)


def test_the_largest_moments_are_those_that_stay() -> None:
    model, optimizer = relora()
    (parameter, *_) = optimizer.param_groups[0]["params"]
    before = optimizer.state[parameter]["exp_avg"].clone()
    restart(model, optimizer, pruned=0.9)
    after = optimizer.state[parameter]["exp_avg"]
    kept = after != 0
    assert torch.equal(after[kept], before[kept])
    assert before[kept].abs().min() > before[~kept].abs().max()


def test_what_restarts_have_stacked_is_saved_and_loaded(tmp_path: Path) -> None:
    model, optimizer = relora()
    restart(model, optimizer)
    advance(model, optimizer, 5, 8)
    save(model, tmp_path / "adapter")
    other = network()
    load(tmp_path / "adapter", other)
    x = torch.randn(4, 10)
    torch.testing.assert_close(other(x), model(x), atol=1e-5, rtol=1e-5)


def test_a_restart_that_makes_the_frozen_part_dearer_than_the_matrix_says_so_once() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    adapt(model, "relora", rank=2)
    restart(model)
    with pytest.warns(UserWarning, match="costs more now than the dense matrix"):
        restart(model)  # 4 (8 + 8) = 8 · 8


def test_the_rate_is_a_cosine_that_rises_anew_after_each_restart() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = jagged_cosine(optimizer, steps=100, every=30, warmup=10, rewarm=5, least=0.1)
    rates = []
    for _ in range(101):
        rates.append(optimizer.param_groups[0]["lr"] / 2)
        optimizer.step()
        schedule.step()

    def cosine(t: int) -> float:
        return 0.1 + 0.9 * (1 + math.cos(math.pi * (t - 10) / 90)) / 2

    assert rates[:11] == pytest.approx([t / 10 for t in range(11)])
    assert rates[30:36] == pytest.approx([p / 5 * cosine(35) for p in range(6)])
    assert rates[36:60] == pytest.approx([cosine(t) for t in range(36, 60)])
    assert rates[60] == 0
    assert rates[100] == pytest.approx(0.1)


def test_bad_numbers_and_shapes_are_refused() -> None:
    model, optimizer = relora()
    with pytest.raises(ValueError, match="pruned"):
        restart(model, pruned=1.5)
    with pytest.raises(ValueError, match="no adapter 'other'"):
        restart(model, name="other")
    with pytest.raises(ValueError, match="0 ≤ rewarm < every"):
        jagged_cosine(optimizer, steps=10, every=5, rewarm=5)
    reads = network()
    adapt(reads, "mica", rank=2)
    with pytest.raises(ValueError, match="mica does not train it"):
        restart(reads)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer.state[optimizer.param_groups[0]["params"][-1]]["exp_avg"] = torch.zeros(6, 2, dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"uint8.*optimizer=None"):
        restart(model, optimizer)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    triplets = network()
    adapt(triplets, "adalora", rank=2)
    with pytest.raises(TypeError, match="Triplets is another shape"):
        restart(triplets)
