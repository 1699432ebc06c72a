"""A GGUF file is converted once, its values are kept, and what is loaded from it can be saved."""

import gguf
import pytest
import torch

from eckart.lm import cache_folder, checkpoint_path, load
from eckart.lm import gguf as conversion
from eckart.nn.files import open_checkpoint


def test_a_gguf_file_is_converted_at_its_first_load_only(tiny_gguf, monkeypatch):
    told = []
    first = load(tiny_gguf, progress=lambda *step: told.append(step))
    assert [(done, total) for done, total, _ in told] == [(0, 1), (1, 1)]
    assert str(cache_folder()) in told[0][2]
    monkeypatch.setattr(conversion, "_convert", None)  # a second conversion would fail
    second = load(tiny_gguf, progress=lambda *step: told.append(step))
    assert len(told) == 2
    assert not second.model.training
    assert second.tokenizer("abc")["input_ids"] == first.tokenizer("abc")["input_ids"]
    for (name, ours), (_, again) in zip(first.model.named_parameters(), second.model.named_parameters(), strict=True):
        assert ours.equal(again), name


def test_the_values_are_those_of_the_file(tiny_gguf):
    model = load(tiny_gguf).model
    stored = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(tiny_gguf).tensors}
    for name, parameter in (
        ("token_embd.weight", model.model.embed_tokens.weight),
        ("blk.0.attn_v.weight", model.model.layers[0].self_attn.v_proj.weight),
        ("blk.0.ffn_down.weight", model.model.layers[0].mlp.down_proj.weight),
    ):
        assert parameter.detach().equal(torch.from_numpy(stored[name].copy()))


def test_a_model_loaded_from_gguf_is_saved_and_loaded_again(tiny_gguf, tmp_path):
    model, tokenizer, _ = load(tiny_gguf)
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved").model
    ids = torch.tensor([[3, 4, 5]])
    with torch.inference_mode():
        assert again(ids).logits.equal(model(ids).logits)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("how", ["missing", "truncated"])
def test_a_damaged_cache_entry_is_made_again(tiny_gguf, name, how):
    entry = checkpoint_path(tiny_gguf)
    whole = {file.name: file.read_bytes() for file in entry.iterdir()}
    if how == "missing":
        (entry / name).unlink()
    else:
        (entry / name).write_bytes(whole[name][: len(whole[name]) // 2])
    assert checkpoint_path(tiny_gguf) == entry
    assert (entry / name).read_bytes() == whole[name]
    assert [other.name for other in entry.parent.iterdir()] == [entry.name]


def test_a_changed_file_is_another_entry(tiny_gguf):
    first = checkpoint_path(tiny_gguf)
    tiny_gguf.touch()
    assert checkpoint_path(tiny_gguf) != first


def test_the_cache_is_a_checkpoint_that_can_be_scanned(tiny_gguf):
    names = {matrix.name: matrix.shape for matrix in open_checkpoint(checkpoint_path(tiny_gguf)).matrices()}
    assert names["model.layers.0.mlp.up_proj"] == (96, 64)
    assert "lm_head" not in names


def test_a_damaged_gguf_file_is_named_and_leaves_nothing_in_the_cache(tiny_gguf):
    tiny_gguf.write_bytes(tiny_gguf.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"tiny.Q8_0.gguf cannot be read as a GGUF model \(.*download it again"):
        load(tiny_gguf)
    assert not cache_folder().exists()
