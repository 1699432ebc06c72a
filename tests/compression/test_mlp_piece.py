"""MLPs with fewer neurons: twins cost nothing, the told error is the outputs' error, biases come along."""

import pytest
import torch
from torch import Tensor, nn

from eckart.compression import metrics
from eckart.compression.pieces.mlp_piece import MlpPiece
from eckart.compression.settings import Settings
from eckart.nn import matrices, observe, replace

EXACT = Settings(shrink=0.0)


class Mlp(nn.Module):
    """An MLP with or without a gate, in float64."""

    def __init__(self, gate: bool, bias: bool, neurons: int, generator: torch.Generator) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(6, neurons, bias=bias) if gate else None
        self.up_proj, self.down_proj = nn.Linear(6, neurons, bias=bias), nn.Linear(neurons, 5, bias=bias)
        self.double()
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up_proj(x)
        return self.down_proj(h.tanh() if self.gate_proj is None else self.gate_proj(x).sigmoid() * h)


def _piece(model: Mlp, x: Tensor, settings: Settings = EXACT) -> MlpPiece:
    *inner, down = matrices(model)
    piece = MlpPiece(inner, down, settings, metrics.input_covariance)
    piece.learn(observe(model, [x], ["input_covariance"]))
    return piece


def _apply(model: Mlp, piece: MlpPiece, size: int) -> None:
    for name, layer in piece.build(size).items():
        replace(model, name, layer)


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(400, 6, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("size", [1, 9, 23])
def test_the_told_error_is_that_of_the_outputs(gate, bias, size, x, generator):
    model = Mlp(gate, bias, 24, generator)
    piece, before = _piece(model, x), model(x)
    _apply(model, piece, size)
    assert model.down_proj.in_features == model.up_proj.out_features == size
    error = (model(x) - before).square().sum() / len(x)
    torch.testing.assert_close(error.detach(), piece.learned["errors"][size], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gate", [False, True])
def test_an_mlp_of_twins_is_halved_without_loss(gate, bias, x, generator):
    model = Mlp(gate, bias, 16, generator)
    with torch.no_grad():
        for layer in (model.gate_proj, model.up_proj):
            for parameter in () if layer is None else layer.parameters():
                parameter[8:] = parameter[:8]
    piece, before = _piece(model, x), model(x)
    assert piece.error(8) < 1e-6
    _apply(model, piece, 8)
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in model.parameters() if p.ndim == 2) * 8 == piece.bytes(8) == piece.dense_bytes // 2


def test_a_constant_neuron_goes_into_the_bias(x, generator):
    model = Mlp(False, True, 10, generator)
    with torch.no_grad():
        model.up_proj.weight[4] = 0  # tanh of its bias, whatever x
    piece, before = _piece(model, x), model(x)
    assert piece.error(9) < 1e-6
    _apply(model, piece, 9)
    torch.testing.assert_close(model(x), before, rtol=1e-6, atol=1e-6)


def test_no_other_choice_of_one_neuron_to_drop_does_better_by_much(x, generator):
    model = Mlp(True, False, 12, generator)
    piece = _piece(model, x)
    C = observe(model, [x], ["input_covariance"])["down_proj"].input_second_moment
    W = model.down_proj.weight.detach()
    least = (W.square().sum(0) / torch.linalg.inv(C).diagonal()).min()
    assert least <= float(piece.learned["errors"][11]) * (1 + 1e-9) <= 2 * least


def test_the_spectrum_falls_and_its_tails_are_at_most_the_errors(x, generator):
    piece = _piece(Mlp(True, True, 24, generator), x, Settings())
    S, errors = piece.spectrum, piece.learned["errors"]
    assert bool((S.diff() <= 0).all())
    tails = torch.cat((S.square().flip(0).cumsum(0).flip(0), S.new_zeros(1)))
    assert bool((tails <= errors * (1 + 1e-9) + 1e-12).all())
    torch.testing.assert_close(tails[0], errors[0])


def test_with_output_gradients_the_error_is_weighted_by_them(x, generator):
    model = Mlp(False, False, 20, generator)
    loss = lambda output, batch: output[:, 0].square().sum()  # noqa: E731
    seen = observe(model, [x], ["input_covariance", "output_gradient_covariance"], loss=loss)
    piece = MlpPiece(matrices(model)[:1], matrices(model)[1], Settings(0.0, 0.0), metrics.two_sided)
    piece.learn(seen)
    G = seen["down_proj"].output_gradient_second_moment
    before = model(x)
    _apply(model, piece, 7)
    moved = (model(x) - before).detach()
    torch.testing.assert_close(((moved @ G) * moved).sum() / len(x), piece.learned["errors"][7], rtol=1e-6, atol=1e-12)


def test_matrices_that_do_not_fit_are_named(generator):
    with pytest.raises(ValueError, match="are no MLP"):
        MlpPiece([matrices(nn.Linear(4, 4))[0]], matrices(nn.Linear(5, 4))[0], EXACT, metrics.plain)
