"""LoftQ's start on a base that is already quantised: the best rank r of what it lost, read from the original."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from eckart.adapters import adapt, disabled
from eckart.adapters.layers.place import places
from eckart.linalg import dequantize, quantize
from eckart.nn import matrices
from eckart.nn.files import save_safetensors
from families import families


def quantised(model: nn.Module) -> nn.Module:
    """A copy whose linear weights have been through 4 bits, kept in floating point."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for matrix in matrices(model):
            if matrix.kind in ("linear", "conv1d"):
                parameter = getattr(matrix.module, matrix.parameter)
                parameter.copy_(dequantize(quantize(parameter.detach(), 4)))
    return model


def test_the_adapter_is_the_best_rank_r_of_what_quantisation_lost() -> None:
    full = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 16)).double()
    base = quantised(full)
    kept = copy.deepcopy(base)
    adapt(base, "loftq", rank=4, original=full)
    for index in (0, 2):
        lost = full[index].weight.detach() - kept[index].weight.detach()
        U, S, Vh = torch.linalg.svd(lost)
        adapter: Any = places(base)[str(index)].live()[0]
        torch.testing.assert_close(adapter.delta(), U[:, :4] * S[:4] @ Vh[:4], atol=1e-8, rtol=1e-6)
        torch.testing.assert_close(adapter.B.norm(dim=0), adapter.A.norm(dim=1))
        assert torch.equal(base[index].base.weight, kept[index].weight)
    with disabled(base):
        x = torch.randn(5, 24, dtype=torch.float64)
        assert torch.equal(base(x), kept(x))


@pytest.mark.parametrize("family", ["gpt2", "llama", "vit"])
def test_it_brings_a_quantised_model_nearer_to_the_unquantised_one(family: str) -> None:
    full, batches = families()[family]()
    expected = full(**batches[0]).logits
    errors = []
    for rank in (0, 12):
        base = quantised(full)
        if rank:
            adapt(base, "loftq", rank=rank, original=full)
        errors.append(float((base(**batches[0]).logits - expected).norm().detach()))
    assert errors[1] < 0.8 * errors[0]


def test_a_checkpoint_a_state_dict_and_a_model_give_the_same(tmp_path: Path) -> None:
    full, _ = families()["gpt2"]()
    save_safetensors(tmp_path / "model.safetensors", {k: v.contiguous() for k, v in full.state_dict().items()})
    found = []
    for original in (tmp_path, str(tmp_path / "model.safetensors"), full.state_dict(), full):
        base = quantised(full)
        done = adapt(base, "loftq", rank=2, original=original)
        assert isinstance(done.settings.options["original"], str)  # plain data, for the files
        found.append([place.live()[0].delta().detach() for place in places(base).values()])
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_what_is_missing_or_does_not_fit_is_named_and_nothing_changes() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4))
    with pytest.raises(ValueError, match="original: the start needs the weights before quantisation"):
        adapt(model, "loftq", rank=2)
    with pytest.raises(ValueError, match=r"original: it has no weight of 1; closest: '?0"):
        adapt(model, "loftq", rank=2, original={"0.weight": torch.ones(4, 6)})
    with pytest.raises(ValueError, match=r"original: 0 is \(6, 4\) there, which is no weight of this \(4, 6\)"):
        adapt(model, "loftq", rank=2, original={"0": torch.ones(6, 4), "1": torch.ones(4, 4)})
    with pytest.raises(TypeError, match="original: int is no path"):
        adapt(model, "loftq", rank=2, original=3)
    assert not places(model)
