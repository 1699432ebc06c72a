"""Basis Sharing: the best common basis, each matrix's best coefficients, one parameter, and its bytes."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from eckart.compression import compress, metrics
from eckart.compression.pieces.basis_piece import BasisPiece
from eckart.compression.pieces.units import basis_sharing
from eckart.compression.settings import Settings
from eckart.linalg import weighted_singular_values
from eckart.nn import FactoredLinear, Observation, matrices
from families import families

SETTINGS = Settings(shrink=0.0)
ROWS = (7, 5, 6)


def _model(generator: torch.Generator) -> nn.Module:
    layers = [nn.Linear(12, m, dtype=torch.float64) for m in ROWS]
    for layer in layers:
        nn.init.normal_(layer.weight, generator=generator)
    return nn.ModuleList(layers)


def _seen(inputs: Sequence[Tensor]) -> dict[str, Observation]:
    """Observations of layers 0, 1, ... that read these rows (N, 12)."""
    zero = torch.zeros(12, dtype=torch.float64)
    return {
        str(i): Observation(str(i), len(x), input_sum=zero, covariance=x.T @ x / len(x)) for i, x in enumerate(inputs)
    }


def _learned(model: nn.Module, inputs: Sequence[Tensor]) -> BasisPiece:
    piece = BasisPiece(matrices(model), SETTINGS, metrics.input_covariance)
    piece.learn(_seen(inputs))
    return piece


def _inputs(count: int, generator: torch.Generator) -> list[Tensor]:
    scales = torch.rand(count, 1, 12, dtype=torch.float64, generator=generator)
    return list(torch.randn(count, 40, 12, dtype=torch.float64, generator=generator) * scales)


@pytest.mark.parametrize("rank", [1, 5, 11])
def test_of_one_input_the_error_is_the_tail_of_the_stack(rank: int, generator: torch.Generator) -> None:
    model, (x,) = _model(generator), _inputs(1, generator)
    piece = _learned(model, [x] * 3)
    S = weighted_singular_values(torch.cat([layer.weight for layer in model]).detach(), input_covariance=x.T @ x / 40)
    layers = piece.build(rank)
    error = sum((x @ (model[i].weight - layers[str(i)].weight).T).square().sum() / 40 for i in range(3))
    torch.testing.assert_close(error.detach(), S[rank:].square().sum(), rtol=1e-8, atol=0)
    torch.testing.assert_close(piece.spectrum, S, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(layers["1"].bias, model[1].bias)


def test_of_several_inputs_each_matrix_has_the_coefficients_that_fit_its_own(generator: torch.Generator) -> None:
    model, inputs = _model(generator), _inputs(3, generator)
    layers = _learned(model, inputs).build(4)
    for i, x in enumerate(inputs):
        A = layers[str(i)].A.detach()
        best = torch.linalg.lstsq(x @ A.T, x @ model[i].weight.detach().T).solution.T
        torch.testing.assert_close(layers[str(i)].B.detach(), best, rtol=1e-7, atol=1e-9)


def test_the_basis_is_one_parameter_and_counted_once(generator: torch.Generator) -> None:
    model = _model(generator)
    piece = _learned(model, _inputs(3, generator))
    layers = piece.build(4)
    assert len({id(layer.A) for layer in layers.values()}) == 1
    held = nn.ModuleList(layers.values()).parameters()
    assert piece.bytes(4) == 8 * (4 * (sum(ROWS) + 12)) == 8 * sum(p.numel() for p in held if p.ndim == 2)
    assert piece.bytes(piece.full) == piece.dense_bytes == 8 * sum(ROWS) * 12
    assert piece.build(piece.full) == {}


def test_equal_matrices_in_neighbouring_layers_cost_one_basis(generator: torch.Generator) -> None:
    model, (x,) = _model(generator), _inputs(1, generator)
    B, A = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((18, 3), (3, 12)))
    with torch.no_grad():
        for layer, W in zip(model, (B @ A).split(ROWS), strict=True):
            layer.weight.copy_(W)
    piece = _learned(model, [x] * 3)
    assert piece.error(3) < 1e-6
    for i, layer in enumerate(piece.build(3).values()):
        torch.testing.assert_close(layer.weight, model[i].weight, rtol=1e-8, atol=1e-8)


def test_widths_that_differ_are_named() -> None:
    model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(4, 2)])
    with pytest.raises(ValueError, match=r"0 \+ 1 read inputs of widths \[3, 4\]"):
        BasisPiece(matrices(model), SETTINGS, metrics.plain)


@pytest.mark.parametrize(
    ("neighbours", "siblings", "sizes"),
    [(2, False, [2] * 5), (1, True, [2, 2, 3, 3]), (2, True, [4, 6]), (1, False, [])],
)
def test_the_groups_of_a_llama(neighbours: int, siblings: bool, sizes: list[int]) -> None:
    model, _ = families()["llama"]()
    found = [matrix for matrix in matrices(model) if "layers" in matrix.name]
    settings = Settings(options={"neighbours": neighbours, "siblings": siblings})
    pieces = basis_sharing(model, found, settings, metrics.input_covariance)
    assert sorted(len(piece.names) for piece in pieces if len(piece.names) > 1) == sizes
    assert sorted(name for piece in pieces for name in piece.names) == sorted(matrix.name for matrix in found)
    alone = {piece.names[0].rpartition(".")[2] for piece in pieces if len(piece.names) == 1}
    assert alone >= {"o_proj", "down_proj"}


def test_a_number_of_neighbours_that_does_not_fit_is_named() -> None:
    model, _ = families()["llama"]()
    with pytest.raises(ValueError, match="neighbours: 0; give a whole number of layers"):
        basis_sharing(model, matrices(model), Settings(options={"neighbours": 0}), metrics.plain)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("siblings", [False, True])
def test_a_compressed_model_shares_its_bases_and_trains(family: str, siblings: bool) -> None:
    model, batches = families()[family]()
    compress(model, batches, keep=0.6, method="basis-sharing", siblings=siblings)
    layers = [module for module in model.modules() if isinstance(module, FactoredLinear)]
    assert len({id(layer.A) for layer in layers}) < len(layers)
    model(**batches[0]).loss.backward()
    assert all(torch.isfinite(layer.A.grad).all() for layer in layers)
