"""Models inside torch.compile and DDP: adapters go by the model's own names, none come where they would not train."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn

from eckart.adapters import adapt, load, merge, names, pairs, remove, save


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4))


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """One process that is a group of its own."""
    if not distributed.is_gloo_available():
        pytest.skip("torch is built without gloo")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_a_compiled_model_is_adapted_saved_loaded_and_merged_by_its_own_names(tmp_path: Path) -> None:
    model = net()
    assert list(adapt(torch.compile(model), rank=2).settings.ranks) == ["0", "2"]  # type: ignore[arg-type]
    compiled: Any = torch.compile(model)
    save(compiled, tmp_path / "a")
    fresh = net()
    load(tmp_path / "a", torch.compile(fresh))  # type: ignore[arg-type]
    assert names(fresh) == ["default"]
    merge(compiled)
    assert type(model[0]) is nn.Linear
    remove(torch.compile(fresh), "default")  # type: ignore[arg-type]
    assert type(fresh[0]) is nn.Linear


@pytest.mark.parametrize(
    ("verb", "call"),
    [
        ("adapt", lambda model, folder: adapt(model, rank=2, name="second")),
        ("load onto", lambda model, folder: load(folder, model, "second")),
        ("merge into", lambda model, folder: merge(model)),
        ("remove an adapter from", lambda model, folder: remove(model, "default")),
    ],
)
def test_a_replica_is_saved_as_the_model_and_nothing_comes_or_goes_there(
    verb: str, call: Callable[..., Any], group: None, tmp_path: Path
) -> None:
    model = net()
    adapt(model, rank=2)
    kinds = [type(module) for module in model.modules()]
    replica = nn.parallel.DistributedDataParallel(model)
    save(replica, tmp_path / "a")
    with pytest.raises(RuntimeError, match=f"under DistributedDataParallel, .*; {verb} the plain model"):
        call(replica, tmp_path / "a")
    assert [type(module) for module in model.modules()] == kinds
    assert names(model) == ["default"]


def test_a_model_that_another_holds_is_to_be_saved_itself(tmp_path: Path) -> None:
    model = net()
    adapt(model, rank=2)
    with pytest.raises(ValueError, match=r"model: 0 was adapted under that name .* give that model"):
        save(nn.Sequential(model), tmp_path / "a")


def test_the_pairs_of_a_sharded_model_are_whole(group: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = net()
    adapt(model, "pissa", rank=2)
    expected = pairs(model)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    for name, pair in pairs(model).items():
        assert type(pair.B) is torch.Tensor
        assert torch.equal(pair.B, expected[name].B)
        assert torch.equal(pair.A, expected[name].A)
