"""nn.matrices: every family's matrices, each storage once, seen as (out, in)."""

from math import prod

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from eckart.nn import FactoredLinear, PivotedLinear, left_out, matrices
from families import TEXT, families

FAMILIES = families()


@pytest.fixture(params=sorted(FAMILIES))
def model(request: pytest.FixtureRequest) -> nn.Module:
    return FAMILIES[request.param]()[0]


def test_matrices_and_left_out_together_hold_every_number_of_parameters_with_two_dimensions(model):
    held = sum(matrix.stack * prod(matrix.shape) for matrix in matrices(model))
    parameters = dict(model.named_parameters())
    assert held + sum(parameters[name].numel() for name in left_out(model)) == sum(
        parameter.numel() for parameter in parameters.values() if parameter.ndim >= 2
    )


def test_weight_is_a_view_of_the_parameter_with_the_stated_shape(model):
    for matrix in matrices(model):
        W = matrix.weight()
        assert tuple(W.shape) == ((matrix.stack,) if matrix.stack > 1 else ()) + matrix.shape
        assert W.data_ptr() == getattr(matrix.module, matrix.parameter).data_ptr()


def test_as_parameter_undoes_as_matrix(model):
    for matrix in matrices(model):
        tensor = torch.randn_like(getattr(matrix.module, matrix.parameter))
        assert torch.equal(matrix.as_parameter(matrix.as_matrix(tensor)), tensor)


def test_each_name_is_a_key_of_the_state_dict(model):
    keys = model.state_dict().keys()
    for matrix in matrices(model):
        assert all(name in keys or f"{name}.weight" in keys for name in (matrix.name, *matrix.tied))


def test_a_tied_head_is_one_entry_named_by_its_first_place():
    expected = {"gpt2": ("transformer.wte", "lm_head"), "llama": ("model.embed_tokens", "lm_head")}
    expected["bert"] = ("bert.embeddings.word_embeddings", "cls.predictions.decoder")
    for family, (first, other) in expected.items():
        (tied,) = [matrix for matrix in matrices(FAMILIES[family]()[0]) if matrix.tied]
        assert (tied.name, tied.tied, tied.kind) == (first, (other,), "embedding")


def test_an_untied_head_is_an_entry_of_its_own():
    assert [m.name for m in matrices(FAMILIES["mixtral"]()[0], "lm_head")] == ["lm_head"]


def test_a_pattern_may_use_any_name_of_a_tied_weight():
    model = FAMILIES["llama"]()[0]
    assert [m.name for m in matrices(model, "lm_head")] == ["model.embed_tokens"]
    assert "model.embed_tokens" not in [m.name for m in matrices(model, exclude="lm_head")]


def test_a_module_used_in_two_places_is_listed_once():
    shared = nn.Linear(3, 3)
    (matrix,) = matrices(nn.ModuleDict({"first": shared, "second": nn.Sequential(shared)}))
    assert (matrix.name, matrix.tied) == ("first", ("second.0",))


def test_equal_shapes_on_the_meta_device_are_not_taken_for_tied():
    assert len(matrices(nn.Sequential(nn.Linear(3, 3, device="meta"), nn.Linear(3, 3, device="meta")))) == 2


def test_the_weight_of_transformers_conv1d_is_turned_to_out_in():
    model = FAMILIES["gpt2"]()[0]
    matrix = matrices(model, "h.0.mlp.c_fc")[0]
    x = torch.randn(2, 16)
    assert (matrix.kind, matrix.shape) == ("conv1d", (64, 16))
    torch.testing.assert_close(F.linear(x, matrix.weight(), matrix.module.bias), matrix.module(x))


@pytest.mark.parametrize("name", ["stem", "grouped", "depthwise", "pointwise"])
def test_a_convolution_is_its_matrix_times_unfolded_patches(name):
    (matrix,) = matrices(FAMILIES["conv2d"]()[0], name)
    conv = matrix.module
    images = torch.randn(2, conv.in_channels, 9, 9)
    patches = F.unfold(images, conv.kernel_size, padding=conv.padding, stride=conv.stride)
    patches = patches.reshape(2, matrix.stack, matrix.shape[1], -1)
    W = matrix.weight().reshape(matrix.stack, *matrix.shape)
    y = torch.einsum("gmn,bgnp->bgmp", W, patches).flatten(1, 2)
    expected = conv(images).flatten(2)
    bias = 0 if conv.bias is None else conv.bias[:, None]
    torch.testing.assert_close(y + bias, expected)


def test_experts_are_stacks_of_out_in_matrices():
    found = matrices(FAMILIES["mixtral"]()[0], "experts.*")
    assert {(m.name.rpartition(".")[2], m.kind, m.stack, m.shape) for m in found} == {
        ("gate_up_proj", "experts", 4, (80, 24)),
        ("down_proj", "experts", 4, (24, 40)),
    }


class _Experts(nn.Module):
    """Experts stored (E, in, out), which only the model's width tells."""

    def __init__(self, width: int, inner: int, said: bool | None = None) -> None:
        super().__init__()
        self.hidden_size = width
        self.gate_up_proj = nn.Parameter(torch.randn(3, width, 2 * inner))
        self.gate_up_proj_bias = nn.Parameter(torch.randn(3, 2 * inner))
        self.down_proj = nn.Parameter(torch.randn(3, inner, width))
        if said is not None:
            self.is_transposed = said


@pytest.mark.parametrize("said", [None, True])
@pytest.mark.parametrize("inner", [5, 4, 8])
def test_transposed_experts_are_turned_to_out_in(said, inner):
    model = nn.ModuleDict({"experts": _Experts(8, inner, said)})
    found = {m.parameter: m.weight() for m in matrices(model)}
    assert torch.equal(found["gate_up_proj"], model["experts"].gate_up_proj.mT)
    assert torch.equal(found["down_proj"], model["experts"].down_proj.mT)
    assert list(left_out(model)) == ["experts.gate_up_proj_bias"]


def test_multihead_attention_gives_its_packed_or_separate_input_projections():
    packed = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    apart = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2, kdim=6, vdim=4, add_bias_kv=True)})
    assert [(m.name, m.shape) for m in matrices(packed)] == [
        ("attention.in_proj_weight", (24, 8)),
        ("attention.out_proj", (8, 8)),
    ]
    assert [m.shape for m in matrices(apart)] == [(8, 8), (8, 6), (8, 4), (8, 8)]
    assert list(left_out(apart)) == ["attention.bias_k", "attention.bias_v"]


def test_the_router_of_a_mixture_is_left_out_by_name():
    reasons = left_out(FAMILIES["mixtral"]()[0])
    assert "MixtralTopKRouter" in reasons["model.layers.0.mlp.gate.weight"]


def test_left_out_names_what_the_patterns_dropped():
    model = FAMILIES["sequential"]()[0]
    reasons = left_out(model, targets=["0", "2"], exclude="2")
    assert list(reasons) == ["2.weight", "4.weight"]


def test_a_parametrized_layer_gives_the_weight_it_computes():
    class Double(nn.Module):
        def forward(self, W: Tensor) -> Tensor:
            return 2 * W

    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    W = model[0].weight.detach().clone()
    parametrize.register_parametrization(model[0], "weight", Double())
    first, _ = matrices(model)
    assert (first.name, first.kind) == ("0", "linear")
    assert torch.equal(first.weight(), 2 * W)
    assert left_out(model) == {}


@pytest.mark.parametrize("kind", [FactoredLinear, PivotedLinear])
def test_a_layer_held_as_factors_is_the_matrix_of_its_product(kind):
    layer = kind.from_linear(nn.Linear(6, 5), 2)
    model = nn.Sequential(layer)
    (matrix,) = matrices(model)
    assert (matrix.name, matrix.kind, matrix.shape) == ("0", "linear", (5, 6))
    assert torch.equal(matrix.weight(), layer.weight)
    assert left_out(model) == {}


def test_a_weight_in_integers_is_left_out_with_the_remedy():
    linear = nn.Linear(4, 4)
    linear.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    model = nn.Sequential(nn.Linear(4, 4), linear)
    assert [m.name for m in matrices(model)] == ["0"]
    assert "dequantise" in left_out(model)["1.weight"]


def test_a_model_that_is_one_layer_has_one_matrix_named_weight():
    assert [m.name for m in matrices(nn.Linear(3, 2))] == ["weight"]


def test_a_model_without_matrices_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="LayerNorm holds no matrices: none of its 2 parameters"):
        matrices(nn.LayerNorm(4))
    assert left_out(nn.LayerNorm(4)) == {}


def test_an_unknown_target_names_the_closest():
    with pytest.raises(ValueError, match=r"targets: 'q_porj' matches none of 16 names; closest: q_proj"):
        matrices(FAMILIES["llama"]()[0], "q_porj")


def test_excluding_all_that_was_chosen_is_an_error():
    with pytest.raises(ValueError, match="no matrices are left"):
        matrices(FAMILIES["llama"]()[0], "q_proj", exclude="*.self_attn.*")


@pytest.mark.parametrize("family", TEXT)
def test_bfloat16_models_have_the_same_matrices(family):
    model = FAMILIES[family]()[0]
    before = [(m.name, m.shape, m.tied) for m in matrices(model)]
    assert [(m.name, m.shape, m.tied) for m in matrices(model.bfloat16())] == before


def test_a_weight_is_stored_where_a_parameter_holds_it():
    computed = nn.Linear(3, 3)
    parametrize.register_parametrization(computed, "weight", nn.Identity())
    model = nn.Sequential(nn.Linear(3, 3), computed, PivotedLinear.empty(3, 3, rank=1), nn.Conv1d(2, 2, 1))
    assert [matrix.stored for matrix in matrices(model)] == [True, False, False, True]
