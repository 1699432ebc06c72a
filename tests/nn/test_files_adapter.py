"""PEFT's two files: what peft writes is read as peft means it, and what eckart writes loads in peft."""

import copy
import json
import warnings

import pytest
import torch
from torch import nn

from eckart.nn import matrices
from eckart.nn.files import lora_pairs, read_adapter, write_adapter

peft = pytest.importorskip("peft")


class Net(nn.Module):
    """An embedding, convolutions (one of them grouped), a transformers Conv1D and linear layers."""

    def __init__(self):
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.words = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.wide = Conv1D(12, 8)
        self.conv = nn.Conv2d(3, 6, 3)
        self.point = nn.Conv2d(6, 4, 1)
        self.grouped = nn.Conv2d(4, 6, 3, groups=2)
        self.head = nn.Linear(12, 5)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def _adapter(net, folder, config):
    """A peft model with random factors, saved to `folder`."""
    model = peft.get_peft_model(copy.deepcopy(net), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return model


CASES = {
    "plain": ({"target_modules": ["layers.0", "layers.1", "head"]}, 3),
    "rslora": ({"target_modules": ["layers.0", "head"], "use_rslora": True}, 2),
    "patterns": (
        {
            "target_modules": ["layers.0", "layers.1", "layers.2", "head"],
            "rank_pattern": {"layers.1": 2, "^head": 5},
            "alpha_pattern": {r"layers\.[12]": 3, "head": 7},
        },
        4,
    ),
    "conv1d": ({"target_modules": ["wide"], "fan_in_fan_out": True}, 1),
    "embedding": ({"target_modules": ["words"]}, 1),
    "conv2d": ({"target_modules": ["conv", "point"]}, 2),
    "everything": (
        {"target_modules": ["words", "wide", "conv", "layers.2"], "use_rslora": True, "alpha_pattern": {"conv": 1}},
        4,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_pair_is_the_update_that_peft_would_merge(net, tmp_path, case):
    options, count = CASES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own, on fan_in_fan_out
        model = _adapter(net, tmp_path, peft.LoraConfig(r=4, lora_alpha=6, **options))
    pairs = lora_pairs(tmp_path)
    by_name = {matrix.name: matrix for matrix in matrices(net)}
    assert len(pairs) == count
    for name, (B, A, scale) in pairs.items():
        update = model.base_model.model.get_submodule(name).get_delta_weight("default").detach()
        torch.testing.assert_close(scale * (B @ A), by_name[name].as_matrix(update))
        assert tuple((B @ A).shape) == by_name[name].shape


def test_what_is_no_low_rank_update_is_warned_of_by_name(net, tmp_path):
    _adapter(net, tmp_path, peft.LoraConfig(r=2, target_modules=["layers.0"], modules_to_save=["head"]))
    with pytest.warns(UserWarning, match=r"left out: .*head\.weight"):
        assert set(lora_pairs(tmp_path)) == {"layers.0"}


REFUSED = {
    "dora": ({"target_modules": ["layers.0"], "use_dora": True}, "LoRA variant .use_dora"),
    "grouped": ({"target_modules": ["grouped"]}, "'grouped', which do not multiply .a grouped convolution"),
    "parameters": (
        {"target_modules": ["head"], "target_parameters": ["layers.0.weight"]},
        "LoRA variant .target_parameters",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_update_that_is_no_product_is_refused_by_name(net, tmp_path, case):
    options, told = REFUSED[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _adapter(net, tmp_path, peft.LoraConfig(r=4, **options))
    with pytest.raises(ValueError, match=told):
        lora_pairs(tmp_path)


@pytest.mark.parametrize("kind", ["LoHaConfig", "VeraConfig", "IA3Config"])
def test_another_type_of_adapter_is_refused_by_name_though_its_files_are_read(net, tmp_path, kind):
    options = {"feedforward_modules": []} if kind == "IA3Config" else {"r": 2}
    model = peft.get_peft_model(net, getattr(peft, kind)(target_modules=["layers.0"], **options))
    model.save_pretrained(tmp_path)
    config, tensors = read_adapter(tmp_path)
    assert tensors
    with pytest.raises(ValueError, match=f"is a {config['peft_type']} adapter.*merge_and_unload"):
        lora_pairs(tmp_path)


def test_a_start_that_changes_the_base_is_warned_of(net, tmp_path):
    _adapter(net, tmp_path, peft.LoraConfig(r=2, target_modules=["layers.0"], init_lora_weights="pissa"))
    with pytest.warns(UserWarning, match="pissa, which changes the base"):
        lora_pairs(tmp_path)


def test_a_written_adapter_loads_in_peft(net, tmp_path, generator):
    A, B = torch.randn(3, 8, generator=generator), torch.randn(8, 3, generator=generator)
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["layers.1"]}
    write_adapter(tmp_path / "a", config, {"layers.1.lora_A.weight": A, "layers.1.lora_B.weight": B})
    before = net.layers[1].weight.detach().clone()
    model = peft.PeftModel.from_pretrained(net, str(tmp_path / "a"))
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged.layers[1].weight.detach(), before + 2 * B @ A)


def test_read_then_written_is_the_same_adapter(net, tmp_path):
    _adapter(net, tmp_path / "a", peft.LoraConfig(r=2, target_modules=["layers.0", "words"]))
    config, tensors = read_adapter(tmp_path / "a")
    write_adapter(tmp_path / "b", config, tensors)
    again = read_adapter(tmp_path / "b")
    assert again.config == config
    assert set(again.tensors) == set(tensors)
    assert all(again.tensors[key].equal(tensor) for key, tensor in tensors.items())
    with pytest.raises(FileExistsError, match="--force"):
        write_adapter(tmp_path / "b", config, tensors)


def test_a_broken_adapter_is_named_with_its_remedy(net, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no adapter_config\.json"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="names no peft_type"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(FileNotFoundError, match=r"no adapter_model\.safetensors"):
        read_adapter(tmp_path)
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"holds a pickle.*weights_only=True"):
        read_adapter(tmp_path)
    with pytest.raises(ValueError, match="tensors is empty"):
        write_adapter(tmp_path / "b", {"peft_type": "LORA"}, {})
    write_adapter(tmp_path / "c", {"peft_type": "LORA"}, {"head.lora_A.weight": torch.ones(2, 3)})
    with pytest.raises(ValueError, match="only lora_A for 'head'"):
        lora_pairs(tmp_path / "c")
    write_adapter(tmp_path / "d", {"peft_type": "LORA"}, {"head.weight": torch.ones(2, 3)})
    with pytest.raises(ValueError, match="holds no lora_A"), pytest.warns(match="left out"):
        lora_pairs(tmp_path / "d")


def test_an_adapter_already_read_is_not_read_again(tmp_path):
    tensors = {"head.lora_A.weight": torch.ones(1, 3), "head.lora_B.weight": torch.ones(2, 1)}
    write_adapter(tmp_path / "a", {"peft_type": "LORA", "lora_alpha": 2}, tensors)
    files = read_adapter(tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    assert lora_pairs(files)["head"].scale == 2
    with pytest.raises(ValueError, match="the adapter is a IA3 adapter"):
        lora_pairs(files._replace(config={"peft_type": "IA3"}))


def test_an_alpha_pattern_that_is_no_regular_expression_is_a_named_error(tmp_path):
    tensors = {"head.lora_A.weight": torch.ones(1, 3), "head.lora_B.weight": torch.ones(2, 1)}
    write_adapter(tmp_path / "a", {"peft_type": "LORA", "alpha_pattern": {"head[": 3}}, tensors)
    with pytest.raises(ValueError, match=r"a pattern in its adapter_config.json has 'head\['"):
        lora_pairs(tmp_path / "a")
