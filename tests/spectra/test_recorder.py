"""The recorder follows W(t) − W(0): its rank, and how soon its leading subspace is the final one."""

import math

import pytest
import torch
from torch import nn

from eckart import Recorder
from families import families


def _orthogonal_chain(width: int, depth: int, eps: float) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Linear(width, width, bias=False, dtype=torch.float64) for _ in range(depth)]
    for layer in layers:
        layer.weight.data = (
            eps * torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=generator))[0]
        )
    return nn.Sequential(*layers)


def test_a_deep_linear_network_moves_in_2r_directions_only() -> None:
    """Paper T2 (arXiv 2406.04112): with a target of rank r, W(t) − ρ(t)W(0) has rank at most 2r at every step."""
    width, rank, eps = 24, 2, 0.3
    model = _orthogonal_chain(width, 3, eps)
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.linalg.qr(torch.randn(width, rank, dtype=torch.float64, generator=generator))[0] for _ in "lr")
    target = left @ torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64)) @ right.T
    recorder = Recorder(model, rank=rank)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for t in range(1, 301):
        loss = 0.5 * (model[2].weight @ model[1].weight @ model[0].weight - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if t % 100 == 0:
            recorder.step(t)
    rows = [r for r in recorder.rows() if r["name"] == "1"]
    assert [r["step"] for r in rows] == [100, 200, 300]
    for r in rows:
        assert r["values"][2 * rank] < 0.05 * r["values"][0]
    assert rows[-1]["angle_to_last"] == pytest.approx(0, abs=1e-6)
    assert rows[0]["angle_to_first"] == pytest.approx(0, abs=1e-6)


def test_angles_and_norms_of_a_known_motion() -> None:
    model = nn.Sequential(nn.Linear(5, 5, bias=False))
    recorder = Recorder(model, rank=1)
    W0 = model[0].weight.data.clone()
    for t, angle in enumerate((0.0, math.pi / 6, math.pi / 2), start=1):
        u = torch.zeros(5)
        u[0], u[1] = math.cos(angle), math.sin(angle)
        model[0].weight.data = W0 + t * torch.outer(u, torch.eye(5)[2])
        recorder.step(t)
    rows = recorder.rows()
    assert [r["norm"] for r in rows] == pytest.approx([1, 2, 3], rel=1e-5)
    assert [r["stable_rank"] for r in rows] == pytest.approx([1, 1, 1], rel=1e-5)
    assert [r["angle_to_first"] for r in rows] == pytest.approx([0, math.pi / 6, math.pi / 2], abs=1e-3)
    assert [r["angle_to_last"] for r in rows] == pytest.approx([math.pi / 2, math.pi / 3, 0], abs=1e-3)


def test_scalars_are_plain_floats_for_a_tracker() -> None:
    model, _ = families()["llama"]()
    recorder = Recorder(model, targets="*.mlp.*")
    recorder.step(0)
    assert recorder.scalars()["spectra/model.layers.0.mlp.up_proj/norm"] == 0
    model.model.layers[0].mlp.up_proj.weight.data += 0.1
    recorder.step(1)
    scalars = recorder.scalars()
    assert all(isinstance(v, float) for v in scalars.values())
    assert scalars["spectra/model.layers.0.mlp.up_proj/stable_rank"] == pytest.approx(1, rel=1e-4)
    assert not any("self_attn" in key for key in scalars)


def test_an_unmoved_matrix_has_no_angles_and_steps_must_ascend() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    recorder = Recorder(model)
    recorder.step(1)
    (r,) = recorder.rows()
    assert (r["norm"], r["angle_to_first"], r["angle_to_last"]) == (0, None, None)
    with pytest.raises(ValueError, match="steps must ascend"):
        recorder.step(1)
    with pytest.raises(ValueError, match="rank"):
        Recorder(model, rank=0)


def test_a_stack_of_experts_is_recorded_expert_by_expert() -> None:
    model, _ = families()["mixtral"]()
    recorder = Recorder(model, targets="*.experts.down_proj")
    recorder.step(1)
    assert len(recorder.rows()) == 2 * 4
