"""The matrices of a checkpoint are those of the model that wrote it."""

import pytest
import torch
from torch import nn

from eckart.nn import matrices
from eckart.nn.files import open_checkpoint, save_safetensors


def _written(tmp_path, model):
    model.save_pretrained(tmp_path / "model")
    return open_checkpoint(tmp_path / "model")


def _llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def _bert():
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    )


def _vit():
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=8
    )
    return ViTModel(config)


def _gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=12, n_embd=16, n_layer=2, n_head=2))


@pytest.mark.parametrize("build", [_llama, _bert], ids=["llama", "bert"])
def test_a_written_model_and_the_live_one_list_the_same_matrices(tmp_path, build):
    model = build()
    checkpoint = _written(tmp_path, model)
    live = {matrix.name: matrix for matrix in matrices(model)}
    stored = {matrix.name: matrix for matrix in checkpoint.matrices()}
    assert {name: matrix.shape for name, matrix in stored.items()} == {name: m.shape for name, m in live.items()}
    for name, matrix in stored.items():
        assert checkpoint.read(matrix.key).reshape(matrix.shape).equal(live[name].weight().detach())


def test_a_model_that_renames_its_weights_as_it_loads_is_seen_under_the_names_of_the_file(tmp_path):
    model = _vit()
    stored, live = _written(tmp_path, model).matrices(), matrices(model)
    assert sorted(matrix.shape for matrix in stored) == sorted(matrix.shape for matrix in live)
    assert "encoder.layer.0.attention.attention.query" in {matrix.name for matrix in stored}


def test_gpt2_is_seen_as_stored_which_is_transposed(tmp_path):
    model = _gpt2()
    stored = {matrix.name: matrix for matrix in _written(tmp_path, model).matrices()}
    live = {matrix.name: matrix for matrix in matrices(model)}
    assert set(stored) == set(live)
    assert stored["transformer.h.0.attn.c_attn"].shape == (16, 48)
    assert live["transformer.h.0.attn.c_attn"].shape == (48, 16)


def test_experts_convolutions_and_attention_are_matrices_and_the_rest_is_left_out_by_name(tmp_path):
    tensors = {
        "layers.0.mlp.experts.gate_up_proj": torch.ones(4, 12, 6),
        "layers.0.mlp.experts.gate_up_proj_bias": torch.ones(4, 12),
        "layers.0.moe.input_linear.weight": torch.ones(3, 8, 6),
        "conv.weight": torch.ones(8, 4, 5),
        "self_attn.in_proj_weight": torch.ones(18, 6),
        "self_attn.out_proj.weight": torch.ones(6, 6, dtype=torch.bfloat16),
        "position_table": torch.ones(9, 6),
        "quantised.weight": torch.ones(6, 6, dtype=torch.int8),
        "eighths.weight": torch.ones(6, 6).to(torch.float8_e4m3fn),
        "norm.weight": torch.ones(6),
        "nothing.weight": torch.ones(0, 6),
    }
    save_safetensors(tmp_path / "a.safetensors", tensors)
    checkpoint = open_checkpoint(tmp_path)
    assert {m.name: (m.shape, m.stack) for m in checkpoint.matrices()} == {
        "layers.0.mlp.experts.gate_up_proj": ((12, 6), 4),
        "layers.0.moe.input_linear": ((8, 6), 3),
        "conv": ((8, 20), 1),
        "self_attn.in_proj_weight": ((18, 6), 1),
        "self_attn.out_proj": ((6, 6), 1),
    }
    left = checkpoint.left_out()
    tables = {"layers.0.mlp.experts.gate_up_proj_bias", "position_table"}
    assert set(left) == tables | {"quantised.weight", "eighths.weight", "nothing.weight"}
    assert "int8" in left["quantised.weight"]
    assert "scales" in left["eighths.weight"]


def test_patterns_choose_as_they_do_for_a_model(tmp_path):
    save_safetensors(
        tmp_path / "a.safetensors", {f"layers.{i}.{k}.weight": torch.ones(2, 2) for i in (0, 1) for k in "qk"}
    )
    checkpoint = open_checkpoint(tmp_path)
    assert [m.name for m in checkpoint.matrices("q")] == ["layers.0.q", "layers.1.q"]
    assert [m.name for m in checkpoint.matrices(exclude=["layers.0.*"])] == ["layers.1.k", "layers.1.q"]
    with pytest.raises(ValueError, match="matches none"):
        checkpoint.matrices("nobody")
    with pytest.raises(ValueError, match="no matrices are left"):
        checkpoint.matrices("q", exclude="q")


def test_a_checkpoint_of_vectors_holds_no_matrices(tmp_path):
    save_safetensors(tmp_path / "a.safetensors", dict(nn.LayerNorm(4).state_dict()))
    with pytest.raises(ValueError, match="holds no matrices: none of its 2 tensors"):
        open_checkpoint(tmp_path).matrices()


def test_left_out_speaks_of_a_checkpoint_that_has_no_matrices_and_of_what_patterns_drop(tmp_path):
    packed = tmp_path / "packed.safetensors"
    save_safetensors(packed, {"a.weight": torch.ones(2, 2, dtype=torch.uint8)})
    assert "uint8" in open_checkpoint(packed).left_out()["a.weight"]
    plain = tmp_path / "plain.safetensors"
    save_safetensors(plain, {"a.weight": torch.ones(2, 2), "b.weight": torch.ones(2, 2), "b.bias": torch.ones(2)})
    assert list(open_checkpoint(plain).left_out(exclude="b")) == ["b.weight"]
    assert open_checkpoint(plain).left_out() == {}
