"""Files shared with PEFT, both ways: the real peft loads what `save` writes, and `load` reads what peft writes."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart.adapters import METHODS, adapt, load, save
from eckart.adapters.layers.place import adapters
from eckart.nn.batches import run_model
from families import ConvNet, families, stir

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # peft's own

FAMILIES = ("llama", "gpt2", "bert", "vit")
QUERY, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"


def output(model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        if isinstance(batch, dict):  # peft's AdaLoRA cannot give a loss where it does not train
            batch = {key: value for key, value in batch.items() if key != "labels"}
        result = run_model(model, batch)
    return getattr(result, "logits", result)


def built(family: str) -> tuple[nn.Module, list[Any]]:
    if family != "conv":
        return families()[family]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ConvNet().eval(), [torch.randn(3, 3, 16, 16)]


def adapted(family: str, method: str, **options: Any) -> tuple[nn.Module, list[Any]]:
    model, batches = built(family)
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


def in_peft(family: str, folder: Path) -> nn.Module:
    return peft.PeftModel.from_pretrained(built(family)[0], str(folder)).eval()


def same(got: Tensor, expected: Tensor, base: Tensor) -> None:
    """Equal to 1e-5 relative, and not the base."""
    scale = expected.abs().max()
    assert (got - expected).abs().max() <= 1e-5 * scale
    assert (expected - base).abs().max() > 1e-3 * scale


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_peft_loads_every_method_with_the_same_logits(family: str, method: str, tmp_path: Path) -> None:
    model, batches = adapted(family, method)
    saved = save(model, tmp_path / "a")
    assert saved.peft in (METHODS[method].peft, "LORA")
    expected = output(model, batches[0])
    same(output(in_peft(family, tmp_path / "a"), batches[0]), expected, output(built(family)[0], batches[0]))


@pytest.mark.parametrize(
    ("method", "kind"), [("adalora", "ADALORA"), ("vera", "VERA"), ("loha", "LOHA"), ("lokr", "LOKR"), ("dora", "LORA")]
)
def test_what_peft_has_is_written_as_its_own_type(method: str, kind: str, tmp_path: Path) -> None:
    if method not in METHODS:
        pytest.skip("no such row yet")
    model, _ = adapted("llama", method)
    assert save(model, tmp_path / "a").peft == kind
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["peft_type"] == kind


OPTIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ranks by dict": ("llama", "lora", {"rank": {QUERY: 3, UP: 5}}),
    "ranks by dict, one alpha": ("llama", "lora", {"rank": {QUERY: 3, UP: 5}, "alpha": 8}),
    "ranks by dict, rslora": ("llama", "rslora", {"rank": {QUERY: 3, UP: 5}}),
    "ranks by dict, adalora": ("llama", "adalora", {"rank": {QUERY: 3, UP: 5}}),
    "ranks by dict, loha": ("llama", "loha", {"rank": {QUERY: 1, UP: 3}}),
    "ranks by dict, lokr": ("llama", "lokr", {"rank": {QUERY: 1, UP: 3}}),
    "embedding": ("llama", "lora", {"targets": ["embed_tokens", "q_proj"]}),
    "embedding, pissa": ("bert", "pissa", {"targets": ["word_embeddings", "query"]}),
    "dropout": ("bert", "lora", {"dropout": 0.1}),
    "bias": ("bert", "lora", {"bias": True}),
    "bias, rslora": ("gpt2", "rslora", {"bias": True}),
    "bias and magnitude": ("bert", "dora", {"bias": True}),
    "magnitude and a start taken out": ("gpt2", "pissa", {"magnitude": True}),
    "modules to save": ("vit", "lora", {"modules_to_save": "classifier"}),
    "modules to save, dora": ("vit", "dora", {"modules_to_save": ["classifier", "layernorm"]}),
    "convolutions": ("conv", "lora", {"rank": {"stem": 2, "grouped": 1, "pointwise": 2, "head": 2}}),
    "convolutions, dora": ("conv", "dora", {"targets": ["stem", "pointwise"]}),
    "convolutions, pissa": ("conv", "pissa", {"targets": ["stem", "grouped", "head"]}),
    "convolutions, loha": ("conv", "loha", {"targets": ["stem", "pointwise", "head"], "rank": 1}),
    "convolutions, lokr": ("conv", "lokr", {"targets": ["stem", "pointwise", "head"], "rank": 1}),
    "convolutions, adalora": ("conv", "adalora", {"targets": ["stem", "pointwise", "head"]}),
    "magnitude on loha": ("llama", "loha", {"magnitude": True}),
    "vera on an embedding": ("llama", "vera", {"targets": ["embed_tokens", "q_proj"]}),
}  # fmt: skip


@pytest.mark.parametrize("case", OPTIONS)
def test_peft_loads_every_option_with_the_same_logits(case: str, tmp_path: Path) -> None:
    family, method, options = OPTIONS[case]
    if method not in METHODS:
        pytest.skip("no such row yet")
    model, batches = adapted(family, method, **options)
    assert save(model, tmp_path / "a").peft is not None
    expected = output(model, batches[0])
    same(output(in_peft(family, tmp_path / "a"), batches[0]), expected, output(built(family)[0], batches[0]))


@pytest.mark.parametrize("method", METHODS)
def test_all_layers_have_one_scale_for_readers_that_know_no_other(method: str, tmp_path: Path) -> None:
    alpha = {} if METHODS[method].scaling == "none" else {"alpha": 8}
    model, _ = adapted("llama", method, rank={QUERY: 2, UP: 4}, **alpha)
    save(model, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    if config["peft_type"] != "LORA":
        pytest.skip("only LORA is served")
    root = (config["use_rslora"] and 0.5) or 1
    scale = config["lora_alpha"] / config["r"] ** root
    for key, rank in config["rank_pattern"].items():
        assert config["alpha_pattern"][key] / rank**root == pytest.approx(scale)


CASES: dict[str, tuple[str, str, list[str] | str, dict[str, Any]]] = {
    "lora": ("llama", "Lora", ["q_proj", "down_proj"], {"r": 4, "lora_alpha": 6}),
    "lora by regular expression": ("llama", "Lora", r".*\.layers\.1\..*(q|k)_proj", {"r": 4}),
    "all-linear": ("llama", "Lora", "all-linear", {"r": 4}),
    "one layer": ("llama", "Lora", ["q_proj"], {"layers_to_transform": [1]}),
    "rslora": ("gpt2", "Lora", ["c_attn", "c_proj"], {"r": 4, "use_rslora": True}),
    "dora": ("bert", "Lora", ["query", "dense"], {"r": 4, "use_dora": True}),
    "rslora and dora": ("gpt2", "Lora", ["c_attn"], {"r": 4, "use_dora": True, "use_rslora": True}),
    "patterns": (
        "llama", "Lora", ["q_proj", "v_proj"],
        {"r": 4, "rank_pattern": {"v_proj": 2, r"^model\.layers\.0\..*q_proj": 5}, "alpha_pattern": {"layers.1.*": 3}},
    ),
    "embedding": ("llama", "Lora", ["embed_tokens", "q_proj"], {"r": 4}),
    "embedding of bert": ("bert", "Lora", ["word_embeddings"], {"r": 4}),
    "convolutions": ("conv", "Lora", ["stem", "pointwise", "head"], {"r": 4}),
    "convolutions, dora": ("conv", "Lora", ["stem", "pointwise"], {"r": 4, "use_dora": True}),
    "lora_bias": ("bert", "Lora", ["query", "value"], {"r": 4, "lora_bias": True}),
    "bias of adapted layers": ("bert", "Lora", ["query"], {"r": 4, "bias": "lora_only"}),
    "all biases": ("vit", "Lora", ["q_proj", "classifier"], {"r": 4, "bias": "all"}),
    "modules_to_save": ("vit", "Lora", ["q_proj"], {"r": 4, "modules_to_save": ["classifier"]}),
    "adalora": ("llama", "AdaLora", ["q_proj", "up_proj"], {"init_r": 4, "total_step": 10}),
    "adalora of gpt2": ("gpt2", "AdaLora", ["c_attn"], {"init_r": 4, "lora_alpha": 3, "total_step": 10}),
    "vera": ("llama", "Vera", ["q_proj", "down_proj"], {"r": 8}),
    "vera by seed": (
        "gpt2", "Vera", ["c_attn", "c_proj"],
        {"r": 8, "save_projection": False, "projection_prng_key": 3},
    ),
    "loha": ("llama", "LoHa", ["q_proj", "up_proj"], {"r": 2, "alpha": 3, "rank_pattern": {"q_proj": 3}}),
    "lokr": ("llama", "LoKr", ["q_proj", "up_proj"], {"r": 2, "alpha": 3}),
    "lokr, both": ("llama", "LoKr", ["q_proj", "up_proj"], {"r": 1, "decompose_both": True, "decompose_factor": 4}),
    "lokr of convolutions": ("conv", "LoKr", ["stem", "pointwise", "head"], {"r": 8}),
    "loha of convolutions": ("conv", "LoHa", ["stem", "pointwise", "head"], {"r": 2}),
}  # fmt: skip


def by_peft(case: str, folder: Path) -> tuple[nn.Module, list[Any]]:
    """A peft model with random parameters, saved."""
    family, kind, targets, options = CASES[case]
    model, batches = built(family)
    model = peft.get_peft_model(model, getattr(peft, f"{kind}Config")(target_modules=targets, **options)).eval()
    stir(model)
    model.save_pretrained(folder)
    return model, batches


@pytest.mark.parametrize("case", CASES)
def test_what_peft_writes_is_read_with_the_same_logits_and_trains_on(case: str, tmp_path: Path) -> None:
    theirs, batches = by_peft(case, tmp_path)
    family = CASES[case][0]
    model, _ = built(family)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = load(tmp_path, model)
    base = output(built(family)[0], batches[0])
    expected = output(theirs, batches[0])
    same(output(model, batches[0]), expected, base)
    trained = sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    assert "bias" in case or done.trained == trained
    save(model, tmp_path / "again")
    same(output(in_peft(family, tmp_path / "again"), batches[0]), expected, base)


def test_a_target_that_is_also_the_end_of_another_path_is_written_as_a_regular_expression(tmp_path: Path) -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))

    model = net()
    adapt(model, rank=2, targets=["0"], exclude=["1.0"])
    stir(model)
    save(model, tmp_path / "a")
    loaded = peft.PeftModel.from_pretrained(net(), str(tmp_path / "a"))
    assert {name for name, _ in loaded.named_parameters() if "lora_A" in name} == {
        "base_model.model.0.lora_A.default.weight"
    }
    x = torch.randn(3, 4)
    torch.testing.assert_close(loaded(x), model(x))


class Heads(nn.Module):
    """Two modules of which one's path is the end of the other's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.pre_head, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pre_head(self.body(x)))


def test_a_module_that_peft_would_catch_too_is_in_the_file(tmp_path: Path) -> None:
    model = Heads()
    adapt(model, rank=2, targets="body", modules_to_save="head")
    stir(model)
    save(model, tmp_path / "a")
    loaded = peft.PeftModel.from_pretrained(Heads(), str(tmp_path / "a"))
    x = torch.randn(3, 4)
    torch.testing.assert_close(loaded(x), model(x))
    again = Heads()
    load(tmp_path / "a", again)
    assert torch.equal(again(x), model(x))


def test_pairs_that_were_finished_are_in_the_file(tmp_path: Path) -> None:
    model, batches = adapted("llama", "dora")
    for _ in range(2):  # as a restart of ReLoRA keeps them
        for _, adapter in adapters(model, "default"):
            adapter.freeze(1.0)
            nn.init.zeros_(adapter.B)  # type: ignore[arg-type]
        stir(model)
    assert "LORA of rank 6" in save(model, tmp_path / "a").says
    expected = output(model, batches[0])
    same(output(in_peft("llama", tmp_path / "a"), batches[0]), expected, output(built("llama")[0], batches[0]))
    again = built("llama")[0]
    load(tmp_path / "a", again)
    assert torch.equal(output(again, batches[0]), expected)


def classifier() -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    model = BertForSequenceClassification(BertConfig(**sizes, vocab_size=64, num_labels=3)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)  # transformers starts at 0.02: too small to see in the logits
    return model, {"input_ids": torch.randint(64, (2, 5))}


@pytest.mark.parametrize(("modules", "task"), [("classifier", "SEQ_CLS"), (None, None)])
def test_the_task_is_named_where_peft_would_train_the_same_modules_whole(
    modules: str | None, task: str | None, tmp_path: Path
) -> None:
    model, batch = classifier()
    adapt(model, rank=2, targets="query", modules_to_save=modules)
    stir(model)
    save(model, tmp_path / "a")
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["task_type"] == task
    base, _ = classifier()
    expected = output(model, batch)
    same(
        output(peft.PeftModel.from_pretrained(base, str(tmp_path / "a")).eval(), batch),
        expected,
        output(classifier()[0], batch),
    )


def test_a_causal_model_names_its_task(tmp_path: Path) -> None:
    for family in ("llama", "gpt2"):
        save(adapted(family, "lora")[0], tmp_path / family)
        assert json.loads((tmp_path / family / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"


def test_peft_trains_on_from_what_is_written(tmp_path: Path) -> None:
    model, batches = adapted("llama", "pissa")
    save(model, tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(built("llama")[0], str(tmp_path / "a"), is_trainable=True)
    before = output(theirs, batches[0]).clone()
    theirs(**batches[0]).loss.backward()
    torch.optim.SGD([p for p in theirs.parameters() if p.requires_grad], lr=0.1).step()
    assert not torch.allclose(output(theirs, batches[0]), before)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_changed_the_base_is_refused_and_what_peft_converts_is_read(start: str, tmp_path: Path) -> None:
    model, batches = built("llama")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=start)
    theirs = peft.get_peft_model(model, config).eval()
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(tmp_path / "start")
    theirs.peft_config["default"].init_lora_weights = start
    stir(theirs)
    theirs.save_pretrained(tmp_path / "raw")
    fresh, _ = built("llama")
    with pytest.raises(ValueError, match=f"started this adapter with {start}.*path_initial_model"):
        load(tmp_path / "raw", fresh)
    expected = output(theirs, batches[0])
    theirs.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    load(tmp_path / "plain", fresh)
    same(output(fresh, batches[0]), expected, output(built("llama")[0], batches[0]))
