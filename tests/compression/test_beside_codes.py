"""A plan says what plain codes of the same matrices would keep and lose, and which of the two wins where."""

import pytest
import torch
from torch import Tensor, nn

from eckart import compress
from eckart.compression.beside_codes import advice
from eckart.compression.pieces.rounding import rounded_bytes, rounded_error
from eckart.linalg import approximation_error, dequantize, quantize
from eckart.nn import observe
from eckart.nn.quantized_layer import QuantizedLinear
from families import families


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(96, 160), nn.Tanh(), nn.Linear(160, 64))


@pytest.fixture
def batches() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(256, 96) * torch.linspace(0.1, 2, 96) for _ in range(4)]


@pytest.mark.parametrize("bits", [8, 4])
def test_what_codes_lose_is_told_without_quantising(model: nn.Sequential, batches: list[Tensor], bits: int) -> None:
    plan = compress(model, batches, keep=0.5, method="svd-llm", shrink=0.0, dry_run=True)
    seen = observe(model, batches, ["input_covariance"])
    for piece in plan.pieces:
        W, C = piece.matrix.weight().detach(), seen[piece.label].input_second_moment
        codes = quantize(W, bits)
        none = W.new_zeros(W.shape[0], 1), W.new_zeros(1, W.shape[1])
        exact = approximation_error(W - dequantize(codes), *none, input_covariance=C)
        whole = approximation_error(W, *none, input_covariance=C)
        assert rounded_error([piece], bits) == pytest.approx(float(exact / whole), rel=0.1)
        assert rounded_bytes(piece, bits) == codes.nbytes


def test_a_plan_names_what_wins_in_bytes(model: nn.Sequential, batches: list[Tensor]) -> None:
    plan = compress(model, batches, keep=0.5, method="svd-llm", dry_run=True)
    mine, int8, int4 = plan.beside_codes()
    assert mine["kept"] == pytest.approx(plan.kept)
    assert mine["error"] == pytest.approx(plan.error)
    assert int8["kept"] == pytest.approx(17 / 64)
    assert int4["kept"] == pytest.approx(9 / 64)
    assert int8["error"] < mine["error"]
    assert "int8 of these matrices keeps 27 % of their bytes" in plan.report()
    assert plan.remarks[-2].endswith("it wins")
    assert [row["int8_error"] < row["predicted_error"] for row in plan.rows()] == [True, True]


def test_where_low_rank_is_exact_it_wins_in_both() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 128, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(128, 2) @ torch.randn(2, 128))
    plan = compress(model, keep=0.1, method="svd", dry_run=True)
    assert plan.error < 1e-6
    assert [sentence.endswith("this plan wins in both") for sentence in plan.remarks] == [True, True]


def test_a_plan_that_compresses_nothing_is_beside_nothing(model: nn.Sequential) -> None:
    plan = compress(model, keep=1.0, method="svd", dry_run=True)
    assert plan.beside_codes() == []
    assert advice([]) == []
    assert plan.remarks == ()


def test_fewer_bytes_with_a_larger_error_is_a_matter_of_choice() -> None:
    rows = [
        {"name": "this plan", "kept": 0.6, "error": 0.02},
        {"name": "int8", "kept": 0.7, "error": 0.01},
        {"name": "int4", "kept": 0.3, "error": 0.05},
    ]
    first, second = advice(rows)
    assert first.endswith("a smaller error, for more bytes")
    assert second.endswith("fewer bytes, and a larger error")


def _llama(scale: float = 1.0) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """A small decoder; v and up times a scale, o and down by it: the same function."""
    model, batches = families()["llama"]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter *= {"v_proj": scale, "up_proj": scale, "o_proj": 1 / scale, "down_proj": 1 / scale}.get(
                name.split(".")[-2], 1.0
            )
    return model, batches


def test_errors_of_unlike_outputs_are_not_added_up() -> None:
    model, batches = _llama()
    plan = compress(model, batches, keep=0.7, method="modegpt", dry_run=True)
    assert plan.beside_codes() == []
    assert {row["int8_error"] for row in plan.rows() if row["form"] != "dense"} == {None}


def test_with_output_gradients_a_rescaled_model_is_told_the_same() -> None:
    told = []
    for scale in (1.0, 64.0):
        model, batches = _llama(scale)
        plan = compress(
            model, batches, keep=0.7, method="auto", allocation="hulls", shrink=0.0, shrink_outputs=0.0, dry_run=True
        )
        told.append([row["error"] for row in plan.beside_codes()])
    assert len(told[0]) == 3
    assert told[0] == pytest.approx(told[1], rel=0.02)


def test_bytes_of_codes_are_those_of_the_layers_that_hold_them() -> None:
    layer = nn.Linear(96, 40, bias=False, dtype=torch.bfloat16)
    plan = compress(nn.Sequential(layer), keep=0.5, method="svd", dry_run=True)
    for bits in (8, 4):
        assert rounded_bytes(plan.pieces[0], bits) == QuantizedLinear.from_linear(layer, bits).weight_bytes


def test_what_has_no_gradient_at_its_outputs_gets_no_bytes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 24, bias=False), nn.Linear(24, 24, bias=False))
    model[1].weight.data.zero_()  # so that the first one's outputs do not matter
    batches = [torch.randn(64, 24) for _ in range(2)]
    loss = {"loss": lambda output, batch: (output - batch).square().mean()}
    plan = compress(model, batches, keep=0.6, method="two-sided", dry_run=True, **loss)
    rows = {row["name"]: row for row in plan.rows()}
    assert rows["0"]["size"] == 1
    assert float(plan.pieces[0].energy) == 0
