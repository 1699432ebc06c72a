"""What every row of METHODS promises, on every family of models."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart.compression import METHODS, Compressed, Plan, compress
from eckart.nn import matrices
from families import TEXT, families, masked

KEEP = 0.7


def _loss(output: Any, batch: Any) -> Tensor:
    logits = output if isinstance(output, Tensor) else next(iter(output.values()))
    if isinstance(output, Tensor) or getattr(output, "loss", None) is None:
        return logits.square().mean()
    return output.loss


def plan_of(name: str, method: str, **options: Any) -> Plan:
    model, batches = families()[name]()
    plan = compress(model, batches, method=method, loss=_loss, held_out=batches[:1], dry_run=True, **options)
    assert isinstance(plan, Plan)
    return plan


def outputs(model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        output = model(**batch) if isinstance(batch, dict) else model(batch)
    return output if isinstance(output, Tensor) else output[1] if "loss" in output else output[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["sequential", "llama", "gpt2", "bert"])
def test_bytes_kept_are_at_most_those_asked_for(family: str, method: str) -> None:
    plan = plan_of(family, method, keep=KEEP)
    assert 0 < plan.kept <= KEEP + 1e-9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", families())
def test_a_model_of_every_family_runs_after_compression(family: str, method: str) -> None:
    model, batches = families()[family]()
    done = compress(model, batches, keep=KEEP, method=method, loss=_loss, held_out=batches[:1])
    assert isinstance(done, Compressed)
    assert torch.isfinite(outputs(model, batches[0])).all()
    assert any(row["form"] != "dense" for row in done.rows())


@pytest.mark.parametrize("method", METHODS)
def test_a_dry_run_leaves_the_model_as_it_was(method: str) -> None:
    model, batches = families()["llama"]()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = compress(model, batches, keep=KEEP, method=method, loss=_loss, held_out=batches[:1], dry_run=True)
    assert isinstance(plan, Plan)
    plan.layers()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("method", METHODS)
def test_keeping_everything_changes_nothing(method: str) -> None:
    model, batches = families()["llama"]()
    expected = outputs(model, batches[0])
    compress(model, batches, keep=1.0, method=method, loss=_loss, held_out=batches[:1])
    assert torch.equal(outputs(model, batches[0]), expected)


@pytest.mark.parametrize("method", METHODS)
def test_another_budget_needs_no_new_calibration(method: str) -> None:
    plan = plan_of("llama", method, keep=0.8)
    smaller = plan.at(keep=0.6)
    assert smaller.kept < plan.kept
    again = plan_of("llama", method, keep=0.6)
    assert smaller.sizes == again.sizes
    assert smaller.bytes == again.bytes


@pytest.mark.parametrize("method", METHODS)
def test_the_same_call_gives_the_same_bits(method: str) -> None:
    first, second = plan_of("llama", method, keep=KEEP).layers(), plan_of("llama", method, keep=KEEP).layers()
    assert first.keys() == second.keys()
    for name, layer in first.items():
        other = second[name].state_dict()
        assert all(torch.equal(value, other[key]) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_stored_bytes_are_those_that_the_plan_counts(method: str) -> None:
    plan = plan_of("llama", method, keep=KEEP)
    found = {matrix.name: matrix for matrix in matrices(plan.model)}
    layers = plan.layers()
    tensors: dict[int, int] = {}
    for name, layer in layers.items():
        bias = getattr(found[name].module, "bias", None)
        held = {id(t): t.nbytes for t in (*layer.parameters(), *layer.buffers())}
        tensors |= held
        tensors[-id(layer)] = 0 if bias is None else -bias.nbytes
    counted = sum(piece.bytes(plan.sizes[piece.label]) for piece in plan.pieces if piece.names[0] in layers)
    assert sum(tensors.values()) == counted


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", TEXT)
def test_padding_does_not_count(family: str, method: str) -> None:
    model, batches = masked(family)
    plan = compress(model, batches, keep=KEEP, method=method, loss=_loss, held_out=batches[:1], dry_run=True)
    for batch in batches:
        batch["input_ids"][batch["attention_mask"] == 0] = 7
    other = compress(model, batches, keep=KEEP, method=method, loss=_loss, held_out=batches[:1], dry_run=True)
    assert isinstance(plan, Plan)
    assert isinstance(other, Plan)
    assert plan.sizes == other.sizes


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_models_stay_bfloat16(method: str) -> None:
    model, batches = families()["llama"]()
    model = model.bfloat16()
    compress(model, batches, keep=KEEP, method=method, loss=_loss, held_out=batches[:1])
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    assert torch.isfinite(outputs(model, batches[0]).float()).all()
