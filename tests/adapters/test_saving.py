"""`save`: whole folders or none, what it says, and every method is the same adapter when it is loaded again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eckart
from eckart.adapters import METHODS, adapt, load, save
from eckart.adapters.layers.place import adapters
from eckart.nn.batches import run_model
from families import families, stir

FAMILIES = ("sequential", "conv1d", "conv2d", "gpt2", "llama", "bert", "vit", "encoder")


def output(model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        result = run_model(model, batch)
    return getattr(result, "logits", result)


def adapted(family: str, method: str, **options: Any) -> tuple[nn.Module, list[Any]]:
    model, batches = families()[family]()
    row = METHODS[method]
    if row.wanted:
        options.setdefault("batches", batches)
        options.setdefault("loss", lambda out, batch: getattr(out, "logits", out).square().mean())
    if "original" in row.options:
        options.setdefault("original", {name: 1.1 * p.detach() for name, p in model.named_parameters()})
    options.setdefault("rank", 2)
    adapt(model, method, **options)
    stir(model)
    return model, batches


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def states(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    return {place: made.state_dict() for place, made in adapters(model, "default")}


def assert_same_adapter(model: nn.Module, again: nn.Module) -> None:
    """The same trainable parameters, frozen parts, scales and settings, bit for bit."""
    mine, other = trained(model), trained(again)
    assert list(mine) == list(other)
    assert all(torch.equal(mine[name], other[name]) and mine[name].dtype == other[name].dtype for name in mine)
    for place, state in states(model).items():
        assert state.keys() == states(again)[place].keys()
        assert all(torch.equal(state[key], states(again)[place][key]) for key in state)
    for (_, first), (_, second) in zip(adapters(model, "default"), adapters(again, "default"), strict=True):
        assert (first.scale, first.rank, first.dtype) == (second.scale, second.rank, second.dtype)
        left, right = first.settings.to_json(), second.settings.to_json()
        assert {**left, "base": None} == {**right, "base": None}


def step(model: nn.Module, batch: Any) -> None:
    """One step of Adam on everything that trains."""
    loss = getattr(run_model(model, batch), "logits", None)
    loss = run_model(model, batch).square().mean() if loss is None else loss.square().mean()
    model.zero_grad()
    loss.backward()
    torch.optim.Adam(trained(model).values(), lr=1e-3).step()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_comes_back_bit_for_bit_and_trains_on(family: str, method: str, tmp_path: Path) -> None:
    try:
        model, batches = adapted(family, method)
    except (ValueError, TypeError) as error:
        pytest.skip(str(error)[:80])
    saved = save(model, tmp_path / "a")
    assert saved.says
    again, _ = families()[family]()
    load(tmp_path / "a", into=again)
    assert_same_adapter(model, again)
    assert torch.equal(output(model, batches[0]), output(again, batches[0]))
    step(model, batches[0])
    step(again, batches[0])
    assert_same_adapter(model, again)


OPTIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "half precision": ("llama", "lora", {"dtype": torch.bfloat16}),
    "double precision": ("llama", "pissa", {"dtype": torch.float64}),
    "one alpha": ("llama", "rslora", {"rank": {"model.layers.0.mlp.up_proj": 3, "model.layers.1.mlp.up_proj": 2}}),
    "embedding": ("llama", "lora", {"targets": ["embed_tokens", "up_proj"]}),
    "tied head": ("llama", "lora", {"targets": ["lm_head", "up_proj"]}),
    "experts": ("mixtral", "lora", {"targets": ["experts.down_proj", "q_proj"]}),
    "experts, pissa": ("mixtral", "pissa", {"targets": ["experts.gate_up_proj"]}),
    "bias": ("vit", "lora", {"bias": True, "dropout": 0.1}),
    "bias and magnitude": ("bert", "dora", {"bias": True}),
    "modules to save": ("vit", "pissa", {"modules_to_save": ["classifier", "layernorm"]}),
    "grouped convolutions": ("conv2d", "dora", {"rank": {"grouped": 1, "stem": 2}}),
    "circular padding": ("circular", "lora", {}),
}


def circular() -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular"), nn.Linear(8, 4)), [
        torch.randn(2, 3, 8)
    ]


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.filterwarnings("ignore:.*shares its weight")
def test_every_option_comes_back_bit_for_bit(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family, method, options = OPTIONS[case]
    build = families()
    monkeypatch.setitem(globals(), "families", lambda: {**build, "circular": circular})
    model, batches = adapted(family, method, **options)
    save(model, tmp_path / "a")
    again, _ = families()[family]()
    load(tmp_path / "a", into=again)
    assert_same_adapter(model, again)
    assert torch.equal(output(model, batches[0]), output(again, batches[0]))


def test_a_plain_lora_needs_no_second_file_of_tensors_and_a_start_taken_out_does(tmp_path: Path) -> None:
    for method, extra in (("lora", False), ("pissa", True)):
        model, _ = adapted("llama", method)
        saved = eckart.save(model, tmp_path / method)
        assert (tmp_path / method / "eckart.safetensors").is_file() is extra
        assert ("taken out" in saved.says) is extra
        assert str(saved) == f"{method} in {tmp_path / method}, {saved.says}"


def test_what_peft_cannot_hold_is_kept_in_eckarts_files_alone_with_the_reason(tmp_path: Path) -> None:
    model, _ = adapted("mixtral", "lora", targets=["experts.down_proj"])
    saved = save(model, tmp_path / "a")
    assert saved.peft is None
    assert "experts.down_proj is a parameter that no layer of its own applies" in saved.says
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == ["eckart.json", "eckart.safetensors"]


def test_the_settings_and_their_evidence_are_kept(tmp_path: Path) -> None:
    model, _ = adapted("llama", "lora", alpha=3.0, dropout=0.25)
    settings = next(adapters(model, "default"))[1].settings
    settings.evidence = {"model.layers.0.mlp.up_proj": {"gain": 0.5}}
    save(model, tmp_path / "a")
    again, _ = families()["llama"]()
    done = load(tmp_path / "a", into=again, name="second")
    assert done.name == "second"
    assert (done.settings.alpha, done.settings.dropout, done.settings.evidence) == (3.0, 0.25, settings.evidence)
    assert done.settings.base["class"] == "LlamaForCausalLM"


def test_odd_values_in_the_evidence_do_not_cost_the_adapter(tmp_path: Path) -> None:
    model, _ = adapted("llama", "lora")
    settings = next(adapters(model, "default"))[1].settings
    settings.evidence = {"a": float("inf"), "b": torch.ones(2), "c": {3: (1, None)}, "d": Path("x")}
    save(model, tmp_path / "a")
    done = load(tmp_path / "a", into=families()["llama"]()[0])
    assert done.settings.evidence == {"a": "inf", "b": [1.0, 1.0], "c": {"3": [1, None]}, "d": "x"}


def test_saving_changes_neither_the_model_nor_its_settings(tmp_path: Path) -> None:
    model, batches = adapted("llama", "pissa")
    before, said = output(model, batches[0]), repr(next(adapters(model, "default"))[1].settings)
    save(model, tmp_path / "a")
    assert torch.equal(output(model, batches[0]), before)
    assert repr(next(adapters(model, "default"))[1].settings) == said


def test_each_of_several_adapters_is_saved_by_its_name(tmp_path: Path) -> None:
    model, batches = families()["llama"]()
    adapt(model, rank=2, name="a")
    stir(model)
    first = output(model, batches[0])
    adapt(model, "dora", rank=3, name="b", targets="up_proj")
    stir(model)
    save(model, tmp_path / "a", "a")
    save(model, tmp_path / "b", "b")
    fresh, _ = families()["llama"]()
    load(tmp_path / "b", into=fresh)
    load(tmp_path / "a", into=fresh)
    assert set(eckart.adapters.names(fresh)) == {"a", "b"}
    torch.testing.assert_close(output(fresh, batches[0]), first)
    with pytest.raises(ValueError, match="has no adapter 'c'; closest: a, b"):
        save(model, tmp_path / "c", "c")


def test_a_folder_is_replaced_only_where_it_holds_an_adapter_and_force_is_given(tmp_path: Path) -> None:
    model, _ = adapted("llama", "pissa")
    save(model, tmp_path / "a")
    with pytest.raises(FileExistsError, match="force=True"):
        save(model, tmp_path / "a")
    plain, _ = adapted("llama", "lora")
    save(plain, tmp_path / "a", force=True)
    assert not (tmp_path / "a" / "eckart.safetensors").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="holds other files"):
        save(plain, tmp_path / "b", force=True)


@pytest.mark.parametrize("failing", ["write_json", "save_safetensors"])
def test_an_interrupted_write_leaves_what_was_there(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = adapted("llama", "lora")
    save(model, tmp_path / "a")
    before = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    stir(model)

    def broken(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"eckart.adapters.files.saving.{failing}", broken)
    for target in ("a", "b"):
        with pytest.raises(KeyboardInterrupt):
            save(model, tmp_path / target, force=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_the_files_are_plain_json_and_name_no_path_of_this_machine(tmp_path: Path) -> None:
    model, _ = adapted("llama", "lora")
    save(model, tmp_path / "a")
    for name in ("adapter_config.json", "eckart.json"):
        text = (tmp_path / "a" / name).read_text()
        json.loads(text)
        assert str(tmp_path) not in text
