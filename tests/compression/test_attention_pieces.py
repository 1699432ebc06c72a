"""Attention with fewer dimensions: the optimum of values and outputs, scores of the dimensions that matter, biases."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eckart.compression import metrics
from eckart.compression.pieces.attention_piece import HeadsPiece
from eckart.compression.pieces.key_piece import QueryKeyPiece
from eckart.compression.pieces.value_piece import ValueOutputPiece
from eckart.compression.settings import Settings
from eckart.nn import matrices, observe, replace

WIDTH, D = 20, 6
EXACT = Settings(shrink=0.0, shrink_outputs=0.0)
GROUPS = [(4, 4), (4, 2), (6, 2), (3, 1)]


class Attention(nn.Module):
    """Attention with grouped queries, in float64; rotated or not."""

    def __init__(self, heads: int, kv_heads: int, bias: bool, out_bias: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.rotary = heads, kv_heads, False
        self.q_proj = nn.Linear(WIDTH, heads * D, bias=bias)
        self.k_proj, self.v_proj = (nn.Linear(WIDTH, kv_heads * D, bias=bias) for _ in range(2))
        self.o_proj = nn.Linear(heads * D, WIDTH, bias=out_bias)
        self.double()
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, WIDTH)
        q, k, v = (f(x).unflatten(-1, (-1, D)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        if self.rotary:
            q, k = _rotated(q), _rotated(k)
        k, v = (each.repeat_interleave(self.heads // self.kv_heads, 1) for each in (k, v))
        return self.o_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


def _rotated(x: Tensor) -> Tensor:  # (..., T, D)
    angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.5, 0.1], dtype=x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(5, 30, WIDTH, dtype=torch.float64, generator=generator) + 0.3


def _piece(kind: type[HeadsPiece], model: Attention, x: Tensor, settings: Settings = EXACT) -> HeadsPiece:
    found = {matrix.name: matrix for matrix in matrices(model)}
    names = ("v_proj", "o_proj") if kind is ValueOutputPiece else ("q_proj", "k_proj")
    piece = kind(*(found[name] for name in names), model.heads, model.kv_heads, settings, metrics.input_covariance)
    piece.learn(observe(model, [x], ["input_covariance"]))
    return piece


def _apply(model: Attention, piece: HeadsPiece, size: int) -> None:
    layers = piece.build(size)
    assert sum(layer.weight_bytes for layer in layers.values()) == piece.bytes(size)
    for name, layer in layers.items():
        replace(model, name, layer)


@pytest.mark.parametrize(("heads", "kv_heads"), GROUPS)
def test_the_error_of_values_and_outputs_is_the_tail_of_the_stacked_products(heads, kv_heads, x, generator):
    model = Attention(heads, kv_heads, False, False, generator)
    V, O = model.v_proj.weight.detach(), model.o_proj.weight.detach()  # noqa: E741
    piece = _piece(ValueOutputPiece, model, x)
    rows = x.flatten(0, 1)
    group = heads // kv_heads
    stacks = []
    for g in range(kv_heads):
        reads = torch.cat([O[:, h * D : (h + 1) * D] for h in range(g * group, (g + 1) * group)])
        stacks.append(reads @ V[g * D : (g + 1) * D] @ rows.T / len(rows) ** 0.5)
    S = torch.cat([torch.linalg.svdvals(stack)[:D] for stack in stacks]).sort(descending=True).values
    torch.testing.assert_close(piece.spectrum, S, rtol=1e-6, atol=1e-8)
    size = kv_heads * D - 4
    _apply(model, piece, size)
    v, o = model.v_proj.weight.detach(), model.o_proj.weight.detach()
    error = 0.0
    for g, stack in enumerate(stacks):
        reads = torch.cat([o[:, h * D : (h + 1) * D] for h in range(g * group, (g + 1) * group)])
        error += (reads @ v[g * D : (g + 1) * D] @ rows.T / len(rows) ** 0.5 - stack).square().sum()
    torch.testing.assert_close(error, S[size:].square().sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("out_bias", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), GROUPS)
def test_values_of_low_rank_are_compressed_without_loss_their_biases_too(heads, kv_heads, out_bias, x, generator):
    model = Attention(heads, kv_heads, True, out_bias, generator)
    with torch.no_grad():
        for head in model.v_proj.weight.split(D):
            head.copy_(head[:, :2] @ head[:2])
    before = model(x)
    _apply(model, _piece(ValueOutputPiece, model, x), 2 * kv_heads)
    torch.testing.assert_close(model(x), before, rtol=1e-7, atol=1e-7)


def test_at_every_size_but_full_the_mean_of_v_reaches_the_outputs_whole(x, generator):
    model = Attention(4, 2, True, False, generator)
    zero = torch.zeros_like(x)
    before = model(zero)  # only the bias of v is left of the outputs
    piece = _piece(ValueOutputPiece, model, x)
    for size in (1, 5, 11):
        twin = Attention(4, 2, True, False, generator)
        twin.load_state_dict(model.state_dict())
        _apply(twin, piece, size)
        torch.testing.assert_close(twin(zero), before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), GROUPS)
def test_pairs_of_dimensions_that_are_zero_cost_nothing(heads, kv_heads, bias, rotary, x, generator):
    model = Attention(heads, kv_heads, bias, False, generator)
    model.rotary = rotary
    with torch.no_grad():
        for each in (model.q_proj, model.k_proj):
            for parameter in each.parameters():
                parameter.unflatten(0, (-1, D))[:, [1, 1 + D // 2]] = 0
    before = model(x)
    piece = _piece(QueryKeyPiece, model, x)
    size = kv_heads * (D - 2)
    assert piece.error(size) < 1e-12 < piece.error(size - 2)
    _apply(model, piece, size)
    torch.testing.assert_close(model(x), before, rtol=1e-10, atol=1e-10)


def test_the_told_error_of_keys_is_that_of_scores_of_strangers_without_correlation(generator):
    model = Attention(2, 1, True, False, generator)
    with torch.no_grad():
        for each in (model.q_proj, model.k_proj):
            each.weight.copy_(torch.eye(WIDTH)[: each.out_features] * each.weight.diagonal()[:, None])
            each.bias.zero_()
    basis = torch.linalg.qr(torch.randn(200, WIDTH, dtype=torch.float64, generator=generator))[0]
    x = (basis * torch.linspace(1, 3, WIDTH, dtype=torch.float64) * 200**0.5)[None]
    piece = _piece(QueryKeyPiece, model, x)
    twin = {name: layer.weight.detach() for name, layer in piece.build(2).items()}
    error = 0.0
    for h in range(2):
        rows = slice(h * D, (h + 1) * D)
        old = (x[0] @ model.q_proj.weight[rows].T) @ (x[0] @ model.k_proj.weight.T).T
        new = (x[0] @ twin["q_proj"][rows].T) @ (x[0] @ twin["k_proj"].T).T
        error += (old - new).square().mean().detach()
    pairs = model.q_proj.weight.diagonal()[: 2 * D].detach()
    # a pair's estimate, (q_i² + q_j²)(k_i² + k_j²), counts the two products that a rotation would bring in as well
    assert error <= piece.spectrum[2:].square().sum() <= 40 * error
    assert len(pairs) == 2 * D


def test_the_energy_of_a_dimension_has_its_bias_in_it(x, generator):
    model = Attention(2, 1, True, False, generator)
    piece = _piece(QueryKeyPiece, model, x)
    q, k = (f(x).flatten(0, 1).square().mean(0).detach() for f in (model.q_proj, model.k_proj))
    q, k = q.view(2, 2, D // 2).sum((0, 1)), k.view(2, D // 2).sum(0)
    torch.testing.assert_close(piece.spectrum[::2].square() * 2, (q * k).sort(descending=True).values)


def test_an_odd_size_of_pairs_is_the_even_one_below(x, generator):
    piece = _piece(QueryKeyPiece, Attention(4, 2, False, False, generator), x)
    assert piece.bytes(5) == piece.bytes(4)
    assert piece.error(5) == piece.error(4)
    assert piece.build(5)["k_proj"].spec() == piece.build(4)["k_proj"].spec()


def test_with_output_gradients_values_are_weighted_by_them(x, generator):
    model = Attention(4, 2, False, False, generator)
    loss = lambda output, batch: output[..., 0].square().sum()  # noqa: E731
    seen = observe(model, [x], ["input_covariance", "output_gradient_covariance"], loss=loss)
    found = {matrix.name: matrix for matrix in matrices(model)}
    values = ValueOutputPiece(found["v_proj"], found["o_proj"], 4, 2, EXACT, metrics.two_sided)
    values.learn(seen)
    assert values.error(4) < 1e-6  # one output counts, and reads one direction of each query head, two of each group
    keys = QueryKeyPiece(found["q_proj"], found["k_proj"], 4, 2, EXACT, metrics.two_sided)
    keys.learn(seen)
    g = seen["q_proj"].output_gradient_second_moment.diagonal()
    total = (g * model.q_proj(x).square().mean((0, 1))).sum()
    torch.testing.assert_close(keys.spectrum.square().sum(), total.detach(), rtol=1e-6, atol=0)


def test_heads_that_do_not_fit_are_named(generator):
    found = matrices(Attention(4, 2, False, False, generator))
    with pytest.raises(ValueError, match="do not have 6 query heads for 2 others"):
        QueryKeyPiece(found[0], found[1], 6, 2, EXACT, metrics.plain)
