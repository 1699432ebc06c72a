"""Starts from what the layers read: EVA and CorDA against their equations, PEFT's, and singular covariances."""

import copy
import dataclasses
import importlib
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart.adapters import adapt
from eckart.adapters.layers.place import places
from eckart.adapters.starts import activations
from families import families


def model_and_inputs(tokens: int = 400, dtype: torch.dtype = torch.float64) -> tuple[nn.Sequential, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 14), nn.Tanh(), nn.Linear(14, 8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    spread = 3 * 0.5 ** torch.arange(10)
    batches = [(torch.randn(tokens, 10, generator=generator) * spread + 1).to(dtype) for _ in range(2)]
    return model.to(dtype), batches


def inputs_of(model: nn.Sequential, batches: list[Tensor]) -> dict[str, Tensor]:
    x = torch.cat(batches)
    return {"0": x, "2": model[:2](x).detach()}


def adapters(model: nn.Module) -> dict[str, Any]:
    return {name: place.live()[0] for name, place in places(model).items()}


def test_eva_reads_where_the_centred_inputs_vary_most() -> None:
    model, batches = model_and_inputs()
    seen = inputs_of(model, batches)
    adapt(model, "eva", rank=3, batches=batches, rho=1.0)
    for name, adapter in adapters(model).items():
        X = seen[name] - seen[name].mean(0)
        _, _, Vh = torch.linalg.svd(X, full_matrices=False)
        torch.testing.assert_close((adapter.A @ Vh[:3].T).abs(), torch.eye(3, dtype=torch.float64), atol=1e-6, rtol=0)
        assert not adapter.B.any()


def test_evas_ranks_are_those_of_the_largest_shares_of_variance_of_all_matrices() -> None:
    model, batches = model_and_inputs()
    seen = inputs_of(model, batches)
    done = adapt(model, "eva", rank=3, alpha=12.0, batches=batches)
    shares = []
    for name, X in seen.items():
        values = torch.linalg.svdvals(X - X.mean(0)).square()
        shares += [(float(value / values.sum()), name) for value in values[:6]]
    best = [name for _, name in sorted(shares, reverse=True)[:6]]
    assert done.settings.ranks == {name: best.count(name) for name in seen if best.count(name)}
    assert len(set(done.settings.ranks.values())) > 1  # one matrix takes directions from the other
    assert all(adapter.scale == 12.0 / 3 for adapter in adapters(model).values())
    assert set(done.settings.evidence or {}) == set(done.settings.ranks)


def test_a_matrix_without_a_share_is_not_adapted_and_a_mapping_of_ranks_is_kept() -> None:
    model, batches = model_and_inputs()
    flat = [batch * torch.tensor([50.0] + 9 * [1e-3]).double() for batch in batches]
    done = adapt(copy.deepcopy(model), "eva", rank=1, rho=9.0, batches=flat)
    assert sum(done.settings.ranks.values()) == 2
    done = adapt(model, "eva", rank={"0": 1, "2": 4}, batches=batches)
    assert done.settings.ranks == {"0": 1, "2": 4}


def test_layers_that_read_one_tensor_are_decomposed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    svd = activations.truncated_svd
    monkeypatch.setattr(activations, "truncated_svd", lambda *args, **kw: calls.append(1) or svd(*args, **kw))
    model, batches = families()["llama"]()
    adapt(model, "eva", rank=2, rho=1.0, batches=batches)
    assert len(adapters(model)) == 14
    assert len(calls) == 8  # for each of two layers: q/k/v, o, gate/up, down


def test_peft_finds_the_same_directions_and_ranks_for_eva() -> None:
    peft = pytest.importorskip("peft")
    model, batches = model_and_inputs(tokens=600, dtype=torch.float32)
    config = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=["0", "2"], init_lora_weights="eva", eva_config=peft.EvaConfig(rho=2.0)
    )
    theirs = peft.get_peft_model(copy.deepcopy(model), config)
    options = {
        "forward_fn": lambda held, batch: held(batch),
        "prepare_model_inputs_fn": None,
        "prepare_layer_inputs_fn": lambda x, _, __: x[0] if isinstance(x, tuple) else x,
        "show_progress_bar": False,
    }
    peft.initialize_lora_eva_weights(theirs, batches * 8, **options)
    done = adapt(model, "eva", rank=2, batches=batches)
    held = {name: theirs.base_model.model[int(name)] for name in done.settings.ranks}
    assert done.settings.ranks == {name: module.r["default"] for name, module in held.items()}
    for name, adapter in adapters(model).items():
        overlap = torch.linalg.svdvals(adapter.A.double() @ held[name].lora_A["default"].weight.double().T)
        assert overlap.min() > 0.99
        assert adapter.scale == held[name].scaling["default"]


@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_corda_is_the_svd_of_w_times_the_damped_second_moment(mode: str) -> None:
    model, batches = model_and_inputs()
    seen, weights = inputs_of(model, batches), {"0": model[0].weight.detach(), "2": model[2].weight.detach()}
    adapt(model, "corda", rank=3, batches=batches, mode=mode)
    for name, adapter in adapters(model).items():
        X = seen[name]
        C = X.T @ X / len(X)
        C = C / C.diagonal().mean() + 0.01 * torch.eye(len(C), dtype=torch.float64)
        U, S, Vh = torch.linalg.svd(weights[name] @ C, full_matrices=False)
        part = slice(0, 3) if mode == "ipm" else slice(-3, None)
        root = (S[part] / adapter.scale).sqrt()
        B, A = U[:, part] * root, root[:, None] * (Vh[part] @ torch.linalg.inv(C))
        signs = (B * adapter.B).sum(0).sign()
        torch.testing.assert_close(adapter.B * signs, B, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(adapter.A * signs[:, None], A, atol=1e-6, rtol=1e-5)
        assert adapter.delta().abs().max() < 1e-12


@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_peft_takes_the_same_product_out_of_the_weight_for_corda(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    peft = pytest.importorskip("peft")
    attr = types.ModuleType("attr")  # a package that peft imports, and uses for this alone
    attr.dataclass = dataclasses.dataclass  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "attr", sys.modules.get("attr", attr))
    corda = importlib.import_module("peft.tuners.lora.corda")
    model, batches = model_and_inputs(dtype=torch.float32)
    model, X = model[:1], torch.cat(batches)
    theirs = copy.deepcopy(model)
    config = peft.LoraConfig(
        r=3,
        lora_alpha=6,
        target_modules=["0"],
        init_lora_weights="corda",
        corda_config=importlib.import_module("peft.tuners.lora.config").CordaConfig(corda_method=mode),
    )
    with torch.no_grad():
        corda.preprocess_corda(theirs, config, run_model=lambda: theirs(X))  # one sample: one scale, as ours
    held = peft.get_peft_model(theirs, config).base_model.model[0]
    adapt(model, "corda", rank=3, batches=[X], mode=mode)
    (adapter,) = adapters(model).values()
    expected = held.lora_B["default"].weight @ held.lora_A["default"].weight
    torch.testing.assert_close(adapter.B @ adapter.A, expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(("method", "options"), [("eva", {}), ("corda", {}), ("corda", {"mode": "kpm"})])
def test_fewer_tokens_than_features_and_inputs_of_zero_work(method: str, options: dict[str, Any]) -> None:
    for tokens, factor in ((1, 1.0), (3, 1.0), (3, 0.0)):
        model, _ = model_and_inputs(dtype=torch.float32)
        x = factor * torch.randn(tokens, 10, generator=torch.Generator().manual_seed(3))
        before = model(x)
        adapt(model, method, rank=4, batches=[x], **options)
        torch.testing.assert_close(model(x), before, atol=1e-4, rtol=1e-4)
        for adapter in adapters(model).values():
            assert torch.isfinite(adapter.A).all()
            assert (adapter.A.norm(dim=1) + adapter.B.norm(dim=0) > 0).all()


def test_bad_options_and_embeddings_are_named_before_anything_changes() -> None:
    model, batches = families()["gpt2"]()
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(ValueError, match="mode: 'top'"):
        adapt(model, "corda", rank=2, batches=batches, mode="top")
    with pytest.raises(ValueError, match=r"rho: 0\.5"):
        adapt(model, "eva", rank=2, batches=batches, rho=0.5)
    for method in ("eva", "corda"):
        with pytest.raises(ValueError, match=r"covariance of transformer.wpe.*reads ids"):
            adapt(model, method, rank=2, targets=["*wpe", "*c_fc"], batches=batches)
    assert [name for name, _ in model.named_modules()] == names
