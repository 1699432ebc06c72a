"""transformers saves and loads compressed models after `import eckart.lm`, and refuses them without it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import eckart
import eckart.lm
from eckart.compression.files.description import describe
from eckart.compression.files.guard import guard
from eckart.nn import FactoredLinear, PivotedLinear, replace
from eckart.nn.compressed_linear import to_linear
from families import families

FAMILIES = {"llama": ("LlamaForCausalLM", "AutoModelForCausalLM"), "gpt2": ("AutoModelForCausalLM",),
            "bert": ("BertForMaskedLM", "AutoModelForMaskedLM")}  # fmt: skip


def compressed(family: str) -> tuple[Any, dict[str, Tensor]]:
    """A model with factored, pivoted and shared layers; the llama's first MLP is smaller too."""
    model: Any
    model, batches = families()[family]()
    kinds = ("Linear", "Conv1D")
    names = [name for name, module in model.named_modules() if type(module).__name__ in kinds and ".0." in name]
    for place, name in enumerate(names):
        if family != "llama" or "mlp" not in name:
            cls = PivotedLinear if place % 2 else FactoredLinear
            replace(model, name, cls.from_linear(model.get_submodule(name), rank=3))
    if family == "llama":
        _shrink_mlp(model, "model.layers.0.mlp", 25)
        pair = [f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)]
        replace(model, pair[1], FactoredLinear.from_linear(model.get_submodule(pair[1]), rank=3))
        model.get_submodule(pair[1]).A = model.get_submodule(pair[0]).A
    return model, batches[0]


def _shrink_mlp(model: nn.Module, path: str, width: int) -> None:
    for name, cut in (("gate_proj", (slice(width),)), ("up_proj", (slice(width),)), ("down_proj", (..., slice(width)))):
        linear: Any = model.get_submodule(f"{path}.{name}")
        small: Any = to_linear(linear.weight[cut], None)
        small.dense_shape = tuple(linear.weight.shape)
        replace(model, f"{path}.{name}", small)


@torch.no_grad()
def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_save_pretrained_and_from_pretrained_give_the_same_bits(family: str, tmp_path: Path) -> None:
    model, batch = compressed(family)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    for name in FAMILIES[family]:
        again = getattr(transformers, name).from_pretrained(tmp_path)
        assert torch.equal(logits(again, batch), logits(model, batch))
        assert describe(again) == describe(model)
        assert not hasattr(again, "hf_quantizer")
        assert not hasattr(again.config, "quantization_config")


def test_a_loaded_model_is_saved_again_after_more_was_done(tmp_path: Path) -> None:
    model, batch = compressed("llama")
    model.save_pretrained(tmp_path / "one")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    assert again.model.layers[1].self_attn.q_proj.A is again.model.layers[0].self_attn.q_proj.A
    eckart.adapt(again, rank=2, targets="*.1.mlp.down_proj")
    with torch.no_grad():
        for parameter in again.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    with pytest.raises(ValueError, match="adapted; merge"):
        again.save_pretrained(tmp_path / "two")
    eckart.merge(again)
    replace(again, "model.layers.1.mlp.up_proj", FactoredLinear.from_linear(again.model.layers[1].mlp.up_proj, rank=4))
    again.save_pretrained(tmp_path / "two")
    third = AutoModelForCausalLM.from_pretrained(tmp_path / "two")
    assert torch.equal(logits(third, batch), logits(again, batch))
    assert not torch.equal(logits(third, batch), logits(model, batch))
    assert sum(p.numel() for p in third.parameters()) < sum(p.numel() for p in model.parameters())


def test_other_classes_dtypes_and_devices_load_too(tmp_path: Path) -> None:
    model, batch = compressed("llama")
    model.save_pretrained(tmp_path)
    inner = AutoModel.from_pretrained(tmp_path)
    ids = {"input_ids": batch["input_ids"]}
    assert torch.equal(inner(**ids).last_hidden_state, model.model(**ids).last_hidden_state)
    AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=2)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, device_map="cpu")
    assert half.model.layers[0].self_attn.k_proj.C.dtype == torch.bfloat16
    assert half.model.layers[0].self_attn.k_proj.order.dtype == torch.int32
    inner.save_pretrained(tmp_path / "inner")
    bare = AutoModelForCausalLM.from_pretrained(tmp_path / "inner")
    assert torch.equal(logits(bare, batch), logits(model, batch))


def test_eckart_loads_what_save_pretrained_wrote_and_saves_it_whole(tmp_path: Path, word_tokenizer: Any) -> None:
    model, batch = compressed("llama")
    eckart.lm.save(model, word_tokenizer, tmp_path / "small")
    loaded = eckart.lm.load(tmp_path / "small")
    assert torch.equal(logits(loaded.model, batch), logits(model, batch))
    assert loaded.tokenizer is not None
    fresh = families()["llama"]()[0]
    assert torch.equal(logits(eckart.load(tmp_path / "small", into=fresh), batch), logits(model, batch))
    with pytest.raises(FileExistsError, match="force"):
        eckart.save(model, tmp_path / "small")
    eckart.save(model, tmp_path / "small", force=True)
    assert (
        json.loads((tmp_path / "small" / "config.json").read_text())["quantization_config"]["quant_method"] == "eckart"
    )


def test_an_interrupted_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = compressed("llama")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(OSError, match="No space"):
        eckart.lm.save(model, None, tmp_path / "new" / "small")
    assert list(tmp_path.iterdir()) == []
    assert not hasattr(model.config, "quantization_config")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_densified_folder_is_an_ordinary_model(family: str, tmp_path: Path) -> None:
    model, batch = compressed(family)
    eckart.lm.save(model, None, tmp_path / "small")
    eckart.lm.densify(tmp_path / "small", tmp_path / "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    torch.testing.assert_close(logits(dense, batch), logits(model, batch), atol=1e-4, rtol=1e-4)
    assert {k: v.shape for k, v in dense.state_dict().items()} == {
        k: v.shape for k, v in families()[family]()[0].state_dict().items()
    }


def test_missing_factors_are_never_random(tmp_path: Path) -> None:
    model, _ = compressed("llama")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for key in ("model.layers.0.self_attn.k_proj.order", "model.layers.0.self_attn.v_proj.B"):
        del tensors[key]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 2 tensors .*k_proj\.order"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_damaged_description_is_named(tmp_path: Path) -> None:
    model, _ = compressed("llama")
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    layers = config["quantization_config"]["layers"]
    layers["model.layers.0.self_attn.k_proj"]["rank"] = "3"
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"damaged, layer model\.layers\.0\.self_attn\.k_proj: .*rank is '3'"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    layers["model.layers.7.self_attn.k_proj"] = layers.pop("model.layers.0.self_attn.k_proj")
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"no layer model\.layers\.7\.self_attn\.k_proj"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


FRESH = """
import sys, torch, transformers
sys.path.insert(0, sys.argv[2])
from safetensors.torch import load_file
folder = sys.argv[1]
names = ("AutoModelForCausalLM", "AutoModel", "AutoModelForSequenceClassification", "LlamaForCausalLM", "LlamaModel")
for name in names:
    for options in ({}, {"ignore_mismatched_sizes": True}):
        try:
            getattr(transformers, name).from_pretrained(folder, **options)
        except ValueError as error:
            assert "import eckart.lm" in str(error), error
        else:
            raise AssertionError(f"{name} loaded it")
config = transformers.AutoConfig.from_pretrained(folder)
config.fusion_config = None  # as a transformers that knows none reads it
for name in names:
    try:
        getattr(transformers, name).from_pretrained(folder, config=config)
    except RuntimeError as error:
        assert "ignore_mismatched_sizes" in str(error), error
    else:
        raise AssertionError(f"{name} loaded it")
from families import families
from eckart.nn import FactoredLinear, replace
import eckart.compression.files.guard as guarding
model, (batch, _) = families()["llama"]()
replace(model, "model.layers.0.mlp.up_proj", FactoredLinear.from_linear(model.model.layers[0].mlp.up_proj, rank=2))
guarding.guard(model)
try:
    model.save_pretrained(folder + "-wrong")
except ValueError as error:
    assert "import eckart.lm" in str(error), error
else:
    raise AssertionError("it was saved as a dense model")
import eckart.lm
model.save_pretrained(folder + "-right")
again = transformers.AutoModelForCausalLM.from_pretrained(folder)
kept = load_file(folder + "/logits.safetensors")["logits"]
assert torch.equal(again(**batch).logits, kept)
print("all held")
"""


def test_in_a_fresh_process_it_loads_after_the_import_and_is_refused_before(tmp_path: Path) -> None:
    model, batch = compressed("llama")
    folder = tmp_path / "small"
    model.save_pretrained(folder)
    save_file({"logits": logits(model, batch)}, folder / "logits.safetensors")
    tests = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", FRESH, str(folder), tests], capture_output=True, text=True)
    assert done.stdout.strip().endswith("all held"), done.stderr[-3000:]


def test_a_model_is_guarded_until_it_is_dense_again() -> None:
    model, _ = compressed("bert")
    guard(model)
    assert hasattr(model, "hf_quantizer")
    assert hasattr(model.bert, "hf_quantizer")
    eckart.densify(model)
    assert not hasattr(model, "hf_quantizer")
    assert not hasattr(model.bert, "hf_quantizer")


@pytest.mark.parametrize("how", ["kept whole", "merged"])
def test_a_model_in_which_nothing_is_compressed_any_more_is_saved_as_dense(how: str, tmp_path: Path) -> None:
    model: Any
    model, batches = families()["llama"]()
    if how == "kept whole":
        eckart.compress(model, method="svd", keep=1)
    else:
        eckart.compress(model, method="svd", ranks={"model.layers.0.mlp.down_proj": 3})
        eckart.adapt(model, rank=2)
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter)
        with pytest.warns(UserWarning, match="are dense now"):
            eckart.merge(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**batches[0]).logits, model(**batches[0]).logits)
