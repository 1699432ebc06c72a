"""Limiters measure the update that is made: its norm, written out densely."""

import pytest
import torch
from optim_papers import SHAPES, Fed, drifting, same
from torch import Tensor

SOME = {"lr": 1.0, "scale": 1.0, "rank": 4, "gap": 3}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
UPDATES = {
    "in the subspace": {"method": "galore"},
    "and scaled rows": {"method": "fira"},
    "rows alone": {"method": "apollo"},
    "a gradient": {"method": "galore", "residual": "sgd"},
    "signs that reach into the subspace": {"method": "galore", "residual": "sign", "residual_scale": 0.3},
    "of a sketch that is not orthonormal": {"method": "galore", "projector": "random"},
    "of four bits": {"method": "q-galore"},
    "of columns": {"method": "frugal"},
}


def moves(fed: Fed, gradients: list[Tensor]) -> list[Tensor]:
    """By how much each step changed the weight."""
    found = []
    for G in gradients:
        before = fed.W.detach().clone()
        found.append(before - fed.step(G))
    return found


@shapes
@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
def test_clip_shrinks_the_whole_update_to_the_root_mean_square_and_leaves_smaller_ones(
    update: dict[str, object], shape: tuple[int, int]
) -> None:
    gradients = drifting(shape, 4)
    free = moves(Fed(shape, **{**SOME, **update, "limiter": "none"}), gradients)
    limit = float(torch.stack([move.square().mean().sqrt() for move in free]).median())
    held = moves(Fed(shape, **{**SOME, **update, "limiter": "clip", "limit": limit}), gradients)
    shrunk = 0
    for move, other in zip(free, held, strict=True):
        size = float(move.square().mean().sqrt())
        same(other, move * min(1.0, limit / size), 1e-7)
        shrunk += size > limit * (1 + 1e-9)
    assert 0 < shrunk < 4


def test_growth_starts_again_from_the_last_norm_that_was_not_zero() -> None:
    """Fira's code would hold the step after a zero gradient to 1e-8."""
    fed, G = Fed((24, 10), method="galore", residual="sgd", limiter="growth", **SOME), drifting((24, 10), 1)[0]
    fed.step(G)
    first = float(fed.state["last_norm"])
    assert first > 0
    fed.step(0 * G)
    assert float(fed.state["last_norm"]) == first
    fed.step(50 * G)
    assert float(fed.state["last_norm"]) == pytest.approx(1.01 * first)


def test_growth_leaves_what_goes_through_the_subspace() -> None:
    gradients = drifting((24, 10), 2)
    gradients[1] = 100 * gradients[1]
    fed, galore = Fed((24, 10), method="fira", **SOME), Fed((24, 10), method="galore", **SOME)
    P = None
    for ours, inside in zip(moves(fed, gradients), moves(galore, gradients), strict=True):
        P = fed.state["basis"]
        same(ours @ P, inside @ P)
