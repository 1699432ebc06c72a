"""`load`: another base, damaged files and names in use are refused by name, and the model is then as it was."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart.adapters import activate, adapt, disabled, load, save
from eckart.adapters.layers.saved_modules import saved_modules
from eckart.nn import replace
from eckart.nn.batches import run_model
from eckart.nn.files import read_header, read_tensor, save_safetensors
from families import families, stir


def output(model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        result = run_model(model, batch)
    return getattr(result, "logits", result)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters of one tiny llama: "lora" and "pissa" with eckart's files, "peft" with PEFT's two alone."""
    root = tmp_path_factory.mktemp("adapters")
    for method in ("lora", "pissa"):
        model, _ = families()["llama"]()
        adapt(model, method, rank=2, targets=["q_proj", "up_proj"])
        stir(model)
        save(model, root / method)
    shutil.copytree(root / "lora", root / "peft")
    (root / "peft" / "eckart.json").unlink()
    return {path.name: path for path in root.iterdir()}


def untouched(model: nn.Module) -> Callable[[], None]:
    """A check that the model is as it is now."""
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    trains = {key: p.requires_grad for key, p in model.named_parameters()}
    kinds = [type(module) for module in model.modules()]

    def check() -> None:
        assert model.state_dict().keys() == before.keys()
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
        assert {key: p.requires_grad for key, p in model.named_parameters()} == trains
        assert [type(module) for module in model.modules()] == kinds

    return check


def refuse(folder: Path, model: nn.Module, told: str, **options: Any) -> None:
    check = untouched(model)
    with pytest.raises(ValueError, match=told):
        load(folder, into=model, **options)
    check()


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


def rewritten(folder: Path, file: str, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors of a file."""
    tensors = {key: read_tensor(info) for key, info in read_header(folder / file).items()}
    change(tensors)
    save_safetensors(folder / file, tensors, force=True)


def test_another_class_is_refused(folders: dict[str, Path]) -> None:
    model, _ = families()["gpt2"]()
    for name in ("lora", "pissa"):
        refuse(folders[name], model, "it is a GPT2LMHeadModel, and the adapter was made for a LlamaForCausalLM")
    refuse(folders["peft"], model, r"4 layers that this model has not: model\.layers\.0\.mlp\.up_proj, .*another")


def other_sizes() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=64, num_key_value_heads=2))


def fewer_layers() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 6}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=64, num_key_value_heads=2))


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("name", ["lora", "pissa"])
def test_a_base_of_other_shapes_is_refused_with_the_matrices_that_differ(
    name: str, check: bool, folders: dict[str, Path]
) -> None:
    told = r"model\.layers\.0\.mlp\.up_proj is \(48, 24\), was \(40, 24\)"
    refuse(folders[name], other_sizes(), told, check=check)
    refuse(folders[name], fewer_layers(), r"it has no matrix model\.layers\.1\.mlp\.up_proj", check=check)


def test_a_base_of_other_shapes_is_refused_for_peft_files_too(folders: dict[str, Path]) -> None:
    refuse(folders["peft"], other_sizes(), r"B of model\.layers\.0\.mlp\.up_proj is \(40, 2\), not \(48, 2\)")
    refuse(folders["peft"], fewer_layers(), r"2 layers that this model has not: model\.layers\.1\.mlp\.up_proj")


def test_a_fine_tuned_base_is_refused_and_loads_with_check_false(folders: dict[str, Path]) -> None:
    model, _ = families()["llama"]()
    with torch.no_grad():
        W = model.model.layers[0].self_attn.q_proj.weight
        W.add_(1e-4 * W.std() * torch.randn(W.shape))
    refuse(folders["lora"], model, r"the weights of model\.layers\.0\.self_attn\.q_proj are others.*check=False")
    load(folders["lora"], into=model, check=False)


def test_a_base_in_another_dtype_is_the_same_base(folders: dict[str, Path]) -> None:
    for dtype in (torch.bfloat16, torch.float64):
        model, batches = families()["llama"]()
        model = model.to(dtype)
        load(folders["lora"], into=model)
        plain, _ = families()["llama"]()
        load(folders["lora"], into=plain)
        got, expected = output(model, batches[0]).float(), output(plain, batches[0])
        assert (got - expected).abs().max() < 0.05 * expected.abs().max()
        assert model.model.layers[0].mlp.up_proj.adapters["default"].B.dtype == torch.float32


def test_a_name_in_use_is_refused_and_another_is_taken(folders: dict[str, Path]) -> None:
    model, batches = families()["llama"]()
    load(folders["lora"], into=model)
    first = output(model, batches[0])
    refuse(folders["pissa"], model, "has an adapter 'default' already")
    refuse(folders["pissa"], model, "no name for an adapter", name="a.b")
    load(folders["pissa"], into=model, name="other")
    assert not torch.allclose(output(model, batches[0]), first)
    activate(model, "default")
    torch.testing.assert_close(output(model, batches[0]), first)
    plain, _ = families()["llama"]()
    with disabled(model):
        assert torch.equal(output(model, batches[0]), output(plain, batches[0]))


def test_a_folder_without_an_adapter_is_named(tmp_path: Path) -> None:
    model, _ = families()["llama"]()
    check = untouched(model)
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_config\.json"):
        load(tmp_path, into=model)
    check()


def test_peft_files_that_another_tool_wrote_since_are_not_mixed_with_eckarts(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    model, _ = families()["llama"]()
    folder = copied(folders["pissa"], tmp_path)
    rewritten(folder, "adapter_model.safetensors", lambda tensors: [t.mul_(2) for t in tensors.values()])
    refuse(folder, model, r"is not the one that eckart\.json was written with.*remove eckart\.json and eckart\.safet")
    for file in ("eckart.json", "eckart.safetensors"):
        (folder / file).unlink()
    done = load(folder, into=model)
    assert done.settings.method == "lora"
    assert set(done.settings.ranks.values()) == {4}


def _truncate(folder: Path) -> None:
    file = next(folder.glob("*model.safetensors"))
    file.write_bytes(file.read_bytes()[:-7])


def _json(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    told = json.loads((folder / "eckart.json").read_text())
    change(told)
    (folder / "eckart.json").write_text(json.dumps(told))


def _tensors(change: Callable[[dict[str, Tensor]], Any], file: str = "adapter_model.safetensors") -> Any:
    return lambda folder: rewritten(folder, file, change)


KEY = "base_model.model.model.layers.0.self_attn.q_proj"
OWN = "model.layers.0.self_attn.q_proj"
DAMAGES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "truncated": ("peft", _truncate, "is truncated"),
    "truncated beside eckart.json": ("lora", _truncate, "is truncated"),
    "half a pair": ("peft", _tensors(lambda t: t.pop(f"{KEY}.lora_B.weight")), rf"lora_B.weight of {OWN} is missing"),
    "a layer missing": (
        "peft",
        _tensors(lambda t: [t.pop(f"{KEY}.lora_{half}.weight") for half in "AB"]),
        rf"lacks the tensors of {OWN}",
    ),
    "unknown tensors": (
        "peft",
        _tensors(
            lambda t: t.update({"base_model.model.odd": torch.ones(2), "base_model.model.model.more": torch.ones(1)})
        ),
        r"nothing here takes: model\.more, odd",
    ),
    "shapes that do not multiply": (
        "peft",
        _tensors(lambda t: t.update({f"{KEY}.lora_B.weight": torch.ones(24, 3)})),
        rf"B of {OWN} is \(24, 3\), not \(24, 2\)",
    ),
    "no config": ("peft", lambda folder: (folder / "adapter_config.json").write_text("{oops"), "is not valid JSON"),
    "unknown type": (
        "peft",
        lambda folder: (folder / "adapter_config.json").write_text('{"peft_type": "IA3"}'),
        "holds a IA3 adapter, and LORA, .* can be read",
    ),
    "a newer format": ("lora", lambda folder: _json(folder, lambda told: told.update(format=2)), "is not of format 1"),
    "no settings": ("lora", lambda folder: _json(folder, lambda told: told.pop("settings")), "it lacks settings"),
    "unknown settings": (
        "lora",
        lambda folder: _json(folder, lambda told: told["settings"].update(colour="red")),
        "unknown settings colour",
    ),
    "a base without shapes": (
        "lora",
        lambda folder: _json(folder, lambda told: told["settings"]["base"].update(fingerprint={OWN: {}})),
        r"eckart\.json is damaged",
    ),
    "unknown method": (
        "lora",
        lambda folder: _json(folder, lambda told: told["settings"].update(method="rora")),
        "method 'rora' is not known here; closest: .*lora",
    ),
    "a part missing": (
        "pissa",
        _tensors(lambda t: [t.pop(f"{OWN}:B"), t.pop(f"{OWN}:frozen_A")], "eckart.safetensors"),
        rf"lack {OWN}:frozen_A",
    ),
    "an unknown part": (
        "pissa",
        _tensors(lambda t: t.update(odd=torch.ones(1)), "eckart.safetensors"),
        "hold unknown odd",
    ),
    "a frozen pair of another shape": (
        "pissa",
        _tensors(lambda t: t.update({f"{OWN}:frozen_A": torch.ones(3, 24)}), "eckart.safetensors"),
        rf"the frozen pair of {OWN} is \[\(24, 2\), \(3, 24\)\]",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_files_are_refused_by_name(case: str, folders: dict[str, Path], tmp_path: Path) -> None:
    name, damage, told = DAMAGES[case]
    folder = copied(folders[name], tmp_path)
    damage(folder)
    model, _ = families()["llama"]()
    refuse(folder, model, told)


def _config(key: str, value: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "adapter_config.json"
        told = json.loads(file.read_text())
        told.pop(key)
        file.write_text(json.dumps(told if value is None else told | {key: value}))

    return damage


MALFORMED: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a vector for a factor": ("lora", _tensors(lambda t: t.update({f"{KEY}.lora_A.weight": torch.ones(3)}))),
    "a factor without rows": ("lora", _tensors(lambda t: t.update({f"{KEY}.lora_A.weight": torch.ones(0, 24)}))),
    "a factor of integers": (
        "lora",
        _tensors(lambda t: t.update({f"{KEY}.lora_A.weight": torch.ones(2, 24, dtype=torch.int64)})),
    ),
    "alpha in words": ("lora", _config("lora_alpha", "sixteen")),
    "a pattern that is a list": ("lora", _config("alpha_pattern", [1])),
    "no magnitude": ("dora", _tensors(lambda t: t.pop(f"{KEY}.lora_magnitude_vector"))),
    "no rank": ("vera", _config("r", None)),
    "a rank below 0": ("loha", _config("r", -1)),
    "no alpha": ("lokr", _config("alpha", None)),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_of_peft_are_an_error_of_the_folder(case: str, tmp_path: Path) -> None:
    method, damage = MALFORMED[case]
    model, _ = families()["llama"]()
    adapt(model, method, rank=2, targets="q_proj")
    save(model, tmp_path / "a")
    for file in (tmp_path / "a").glob("eckart.*"):
        file.unlink()
    damage(tmp_path / "a")
    refuse(tmp_path / "a", families()["llama"]()[0], "^folder: ")


def test_a_module_trained_whole_is_taken_by_its_whole_name(tmp_path: Path) -> None:
    def heads() -> nn.Module:
        return nn.ModuleDict(
            {"body": nn.ModuleDict({"head": nn.Linear(3, 3), "q": nn.Linear(3, 3)}), "head": nn.Linear(3, 2)}
        )

    model = heads()
    adapt(model, rank=2, targets="q", modules_to_save="head")
    remove_copy(model, "body.head")
    save(model, tmp_path / "a")
    again = heads()
    load(tmp_path / "a", again, check=False)
    assert list(saved_modules(again)) == ["head"]


def remove_copy(model: nn.Module, name: str) -> None:
    """As if this module had not been named."""
    replace(model, name, saved_modules(model)[name].original)


def test_a_module_trained_whole_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    model, _ = families()["vit"]()
    adapt(model, rank=2, modules_to_save="classifier")
    save(model, tmp_path / "a")
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    other = ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=4, num_labels=7))
    refuse(tmp_path / "a", other, "tensors of classifier, trained whole, do not fit", check=False)
    adapted = families()["vit"]()[0]
    adapt(adapted, rank=2, targets="classifier", name="first")
    refuse(tmp_path / "a", adapted, "classifier has adapters in it")


def test_the_loaded_adapter_is_the_only_one_that_trains(folders: dict[str, Path]) -> None:
    model, _ = families()["llama"]()
    adapt(model, rank=2, name="first")
    done = load(folders["pissa"], into=model)
    trains = [key for key, p in model.named_parameters() if p.requires_grad]
    assert trains
    assert all(".adapters.default." in key for key in trains)
    assert done.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
