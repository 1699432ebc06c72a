"""Allocations on models: measured by held-out loss after training, and keys and values that heads share."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart.compression.allocations.candidates import candidates
from eckart.compression.allocations.named import ALLOCATIONS
from eckart.compression.allocations.rules import hulls, total_bytes, uniform
from eckart.compression.allocations.trying import layers_of, mean_loss, standing
from eckart.compression.fitting.learning import Data, learn
from eckart.compression.metrics import plain, two_sided
from eckart.compression.pieces.matrix_piece import MatrixPiece
from eckart.compression.settings import Settings
from eckart.nn import matrices, roles
from families import families

SETTINGS = Settings()
Batch = tuple[Tensor, Tensor]


def batch(seed: int) -> Batch:
    """Inputs of unequal scale and the outputs of a network of one hidden layer."""
    generator, law = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    x = torch.randn(256, 12, generator=generator) * torch.linspace(2, 0.2, 12)
    hidden = torch.tanh(x @ torch.randn(12, 20, generator=law) / 4)
    return x, hidden @ torch.randn(20, 4, generator=law)


def loss(output: Tensor, pair: Batch) -> Tensor:
    return (output - pair[1]).square().mean()


def forward(model: nn.Module, pair: Batch) -> Any:
    return model(pair[0])


@cache
def trained() -> nn.Module:
    model, _ = families()["sequential"]()
    parameters = list(model.parameters())
    for step in range(200):
        gradients = torch.autograd.grad(loss(forward(model, batch(step)), batch(step)), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 0.05 * gradient
    return model


def learned(storage: str) -> tuple[list[MatrixPiece], Callable[[Mapping[str, int]], float]]:
    """The model's matrices, which know inputs and output gradients, and the held-out loss of sizes."""
    model = trained()
    pieces = [MatrixPiece([matrix], SETTINGS, two_sided, storage) for matrix in matrices(model)]
    learn(model, pieces, two_sided.wanted, Data([batch(1000), batch(1001)], loss=loss, forward=forward), {})

    def trial(sizes: Mapping[str, int]) -> float:
        with standing(model, layers_of(pieces, sizes)):
            return mean_loss(model, [batch(2000)], loss, forward)

    return pieces, trial


def dense_bytes(pieces: Sequence[MatrixPiece]) -> int:
    return sum(piece.dense_bytes for piece in pieces)


def stored_bytes(pieces: Sequence[MatrixPiece], made: Mapping[str, Any]) -> int:
    """The bytes of the layers that were made, and of the matrices that stay."""
    return sum(made[piece.label].weight_bytes if piece.label in made else piece.dense_bytes for piece in pieces)


@pytest.mark.parametrize("storage", ["factors", "pivoted"])
def test_hulls_leave_less_held_out_loss_than_uniform_shares_of_a_trained_model(storage: str) -> None:
    pieces, trial = learned(storage)
    for keep in (0.9, 0.8, 0.7, 0.6, 0.5):
        ours = trial(hulls(pieces, keep, SETTINGS, trial))
        theirs = trial(uniform(pieces, keep, SETTINGS, trial))
        assert ours < 0.8 * theirs


@pytest.mark.parametrize("storage", ["factors", "pivoted"])
def test_candidates_are_no_worse_than_any_of_them(storage: str) -> None:
    pieces, trial = learned(storage)
    for keep in (0.8, 0.4):
        chosen = candidates(pieces, keep, SETTINGS, trial)
        assert trial(chosen) == min(chosen.losses.values()) <= trial(uniform(pieces, keep, SETTINGS, trial))


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_what_was_allocated_is_what_the_layers_take(name: str) -> None:
    pieces, trial = learned("pivoted")
    sizes = ALLOCATIONS[name](pieces, 0.6, SETTINGS, trial)
    made = layers_of(pieces, sizes)
    assert stored_bytes(pieces, made) == total_bytes(pieces, sizes) <= 0.6 * dense_bytes(pieces)


def test_convolutions_are_shared_out_with_linear_layers() -> None:
    model, _ = families()["conv2d"]()
    pieces = [MatrixPiece([matrix], SETTINGS, plain, "factors") for matrix in matrices(model) if matrix.stack == 1]
    learn(model, pieces, (), Data([]), {})
    assert {piece.matrix.kind for piece in pieces} == {"conv", "linear"}
    for rule in ("uniform", "energy", "hulls"):
        sizes = ALLOCATIONS[rule](pieces, 0.7, SETTINGS, lambda sizes: 0.0)
        made = layers_of(pieces, sizes)
        assert total_bytes(pieces, sizes) <= 0.7 * dense_bytes(pieces)
        assert stored_bytes(pieces, made) == total_bytes(pieces, sizes)


@pytest.mark.parametrize("keep", [0.8, 0.6, 0.4])
def test_grouped_queries_keep_their_keys_and_values(keep: float) -> None:
    model, batches = families()["llama"]()
    settings = Settings(roles=roles(model))
    found = matrices(model, targets="*_proj")
    pieces = [MatrixPiece([matrix], settings, two_sided, "pivoted") for matrix in found]
    learn(model, pieces, two_sided.wanted, Data(batches), {})
    sizes = hulls(pieces, keep, settings, lambda sizes: 0.0)
    kept = {piece.label: piece.bytes(sizes[piece.label]) / piece.dense_bytes for piece in pieces}
    shared = {name: share for name, share in kept.items() if name.endswith(("k_proj", "v_proj"))}
    assert len(shared) == 4
    floor = 0.25 * keep + 0.75 * (1 - 0.25 * keep)
    step = max(piece.bytes(2) - piece.bytes(1) for piece in pieces if piece.label in shared) / (8 * 24 * 4)
    assert min(shared.values()) > floor - step
    assert total_bytes(pieces, sizes) <= keep * dense_bytes(pieces)
