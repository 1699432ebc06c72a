"""The adapter between two models: exact where the change has the rank, best where it has not, and what else differs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart.adapters import activate, adapt
from eckart.adapters.factored.extraction import Extraction, extract
from eckart.adapters.factored.pairing import pairs
from eckart.adapters.layers.place import places
from eckart.adapters.using.merging import merge
from eckart.nn import observe
from eckart.nn.batches import run_model
from eckart.nn.files import Checkpoint, open_checkpoint, save_safetensors
from families import families


def output(model: nn.Module, batch: Any) -> Tensor:
    """The tensor that a model gives."""
    result = run_model(model, batch)
    return getattr(result, "logits", result).detach()


def tuned(family: str, rank: int = 2, method: str = "lora") -> tuple[nn.Module, dict[str, Tensor], Any]:
    """A family's model with an adapter merged into it, the changes that it made, and a batch."""
    model, batches = families()[family]()
    adapt(model, method, rank=rank, exclude=["2"] if family == "conv1d" else None)
    generator = torch.Generator().manual_seed(1)
    for place in places(model).values():
        nn.init.normal_(place.held["default"].B, std=0.1, generator=generator)
    deltas = {name: pair.scale * pair.B @ pair.A for name, pair in pairs(model).items()} if method == "lora" else {}
    merge(model)
    return model, deltas, batches[0]


def on_disk(model: nn.Module, folder: Path) -> Checkpoint:
    """The same model as a checkpoint."""
    folder.mkdir()
    save_safetensors(folder / "model.safetensors", {k: v.clone() for k, v in model.state_dict().items()})
    return open_checkpoint(folder)


@pytest.mark.parametrize("family", ["sequential", "conv1d", "gpt2", "llama", "bert", "vit"])
def test_a_change_of_the_rank_is_recovered_exactly_and_acts_on_the_base(family: str) -> None:
    model, deltas, batch = tuned(family)
    base, _ = families()[family]()
    found = extract(base, model, rank=2)
    assert list(found.pairs) == list(deltas)
    for name, (B, A, _) in found.pairs.items():
        torch.testing.assert_close(B @ A, deltas[name], atol=1e-5, rtol=1e-4)
        assert found.matrices[name].captured == pytest.approx(1, abs=1e-6)
    assert found.others == {}
    found.put(base, "again")
    torch.testing.assert_close(output(base, batch), output(model, batch), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("base_on_disk", "tuned_on_disk"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("family", ["gpt2", "vit"])
def test_checkpoints_on_disk_give_the_same(
    family: str, base_on_disk: bool, tuned_on_disk: bool, tmp_path: Path
) -> None:
    model, deltas, _ = tuned(family)
    base, _ = families()[family]()
    ours = on_disk(base, tmp_path / "base") if base_on_disk else base
    theirs = on_disk(model, tmp_path / "tuned") if tuned_on_disk else model
    targets = None if not base_on_disk else list(deltas)
    found = extract(ours, theirs, rank=2, targets=targets)
    assert set(found.pairs) == set(deltas)
    for name, (B, A, _) in found.pairs.items():
        as_stored = base_on_disk and tuned_on_disk and family == "gpt2"  # (in, out): nothing there says otherwise
        torch.testing.assert_close((B @ A).T if as_stored else B @ A, deltas[name], atol=1e-5, rtol=1e-4)


def full(seed: int = 2) -> tuple[nn.Module, nn.Module, list[Tensor]]:
    """A base, the same with a change of full rank, and batches whose inputs are far from white."""
    base, _ = families()["sequential"]()
    other, _ = families()["sequential"]()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    scales = torch.logspace(1, -2, 12)
    return base, other, [torch.randn(50, 12, generator=generator) * scales for _ in range(2)]


def test_what_it_captures_is_the_share_of_the_leading_singular_values() -> None:
    base, other, _ = full()
    found = extract(base, other, rank={"0": 3, "4": 1})
    assert set(found.pairs) == {"0", "4"}
    for name, rank in (("0", 3), ("4", 1)):
        S = torch.linalg.svdvals((other[int(name)].weight - base[int(name)].weight).detach().double())
        share = float(S[:rank].square().sum() / S.square().sum())
        assert found.matrices[name].captured == pytest.approx(share, rel=1e-4)
        assert found.matrices[name].rank == rank
    assert found.others["2"].endswith("no rank for it")


def test_energy_and_budget_choose_the_ranks() -> None:
    base, other, _ = full()
    found = extract(base, other, energy=0.8)
    assert all(each.captured >= 0.8 - 1e-6 for each in found.matrices.values())
    smaller = extract(base, other, rank={name: max(1, each.rank - 1) for name, each in found.matrices.items()})
    assert all(each.captured < 0.8 or found.matrices[name].rank == 1 for name, each in smaller.matrices.items())
    found = extract(base, other, budget=150)
    assert 100 < sum(B.numel() + A.numel() for B, A, _ in found.pairs.values()) <= 150


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_with_batches_the_error_on_the_data_is_no_larger_and_is_the_least_possible(rank: int) -> None:
    base, other, batches = full()
    aware, plain = extract(base, other, rank=rank, batches=batches), extract(base, other, rank=rank)
    seen = observe(other, batches, ["input_covariance"])
    gains = []
    for name in aware.pairs:
        delta = (other[int(name)].weight - base[int(name)].weight).detach()
        C = seen[name].input_second_moment.double()

        def error(found: Extraction, name: str = name, delta: Tensor = delta, C: Tensor = C) -> float:
            E = (delta - found.pairs[name].B @ found.pairs[name].A).double()
            return float(((E @ C) * E).sum())

        gains.append(error(aware) / error(plain))
        values, vectors = torch.linalg.eigh(C)
        S = torch.linalg.svdvals(delta.double() @ vectors * values.clamp_min(0).sqrt())
        assert error(aware) == pytest.approx(float(S[rank:].square().sum()), rel=1e-3)
        share = float(S[:rank].square().sum() / S.square().sum())
        assert aware.matrices[name].captured == pytest.approx(share, rel=1e-4)
    assert max(gains) <= 1 + 1e-6
    assert min(gains) < 0.8


def test_what_is_no_matrix_is_named_with_how_it_differs() -> None:
    model, _, _ = tuned("llama")
    base, _ = families()["llama"]()
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
        model.model.embed_tokens.weight.add_(0.1)
    model.model.register_buffer("extra", torch.ones(2))
    found = extract(base, model, rank=2)
    assert found.others["model.norm.weight"] == "changed by 50.00 % of its norm"
    assert set(found.others) == {"model.norm.weight", "model.embed_tokens.weight", "lm_head.weight", "model.extra"}
    assert str(found).startswith("14 matrices of rank 2, with at least 100.0 % of each change")


def test_an_adapter_of_any_kind_becomes_a_lora_by_merging_and_extracting() -> None:
    model, _, batch = tuned("sequential", method="dora")
    base, _ = families()["sequential"]()
    found = extract(base, model, energy=1.0)
    found.put(base)
    torch.testing.assert_close(output(base, batch), output(model, batch), atol=1e-4, rtol=1e-4)


def test_matrices_that_did_not_change_are_left_out() -> None:
    base, _ = families()["sequential"]()
    other, _ = families()["sequential"]()
    other[2].weight.data[0, 0] += 1
    found = extract(base, other, rank=1)
    assert (list(found.pairs), found.others) == (["2"], {})
    assert str(extract(base, base, rank=1)) == "0 matrices"


def test_bad_requests_are_named() -> None:
    base, other, batches = full()
    with pytest.raises(ValueError, match="give exactly one of rank=, energy= and budget="):
        extract(base, other)
    with pytest.raises(ValueError, match="'5' is not a matrix to extract; closest: 0, 2, 4"):
        extract(base, other, rank={"5": 1})
    with pytest.raises(ValueError, match=r"tuned: 4 is \(4, 16\) in the base and \(7, 16\)"):
        extract(base, nn.Sequential(*other[:4], nn.Linear(16, 7)), rank=1)
    with pytest.raises(ValueError, match="tuned: it has no matrix '4'"):
        extract(base, nn.Sequential(*other[:4]), rank=1)
    broken = nn.Sequential(nn.Linear(2, 2))
    nn.init.constant_(broken[0].weight, torch.nan)
    with pytest.raises(ValueError, match="repair the weights"):
        extract(nn.Sequential(nn.Linear(2, 2)), broken, rank=1)
    adapt(other, rank=1)
    with pytest.raises(ValueError, match="tuned: it has active adapters"):
        extract(base, other, rank=1)
    activate(other)
    with pytest.raises(ValueError, match="it has adapters on it"):
        extract(base, other, rank=1, batches=batches)
