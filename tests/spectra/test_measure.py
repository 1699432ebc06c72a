"""`measure`: every source of spectra against float64 references, on every family of models."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import eckart
from eckart.nn import matrices
from families import families, masked

NAMES = sorted(families())


def _reference(W: torch.Tensor) -> torch.Tensor:
    return torch.linalg.svdvals(W.detach().double())


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_every_family_match_float64_singular_values(name: str) -> None:
    model, _ = families()[name]()
    entries = {e.name: e for e in eckart.measure(model).entries}
    for matrix in matrices(model):
        W = matrix.weight()
        for label, each in (
            [(matrix.name, W)] if matrix.stack == 1 else [(f"{matrix.name}[{i}]", w) for i, w in enumerate(W)]
        ):
            torch.testing.assert_close(entries.pop(label).values, _reference(each), rtol=1e-6, atol=1e-12)
    assert not entries


@pytest.mark.parametrize("name", NAMES)
def test_fast_mode_finds_the_largest_values_and_the_exact_energy(name: str) -> None:
    model, _ = families()[name]()
    full = {e.name: e for e in eckart.measure(model).entries}
    for entry in eckart.measure(model, mode="fast").entries:
        whole = full[entry.name]
        assert len(entry.values) == min(16, whole.count)
        torch.testing.assert_close(entry.values, whole.values[:16], rtol=1e-2, atol=1e-6)
        assert entry.energy == pytest.approx(whole.energy, rel=1e-5)


def test_a_tied_weight_is_measured_once_and_says_so() -> None:
    model, _ = families()["llama"]()
    rows = {r["name"]: r for r in eckart.measure(model).rows()}
    assert "lm_head" not in rows
    assert rows["model.embed_tokens"]["tied"] == ("lm_head",)


def test_a_checkpoint_gives_what_the_live_model_gives(tmp_path: Path) -> None:
    model, _ = families()["llama"]()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    live = {e.name: e.values for e in eckart.measure(model).entries}
    for folder in ("whole", "sharded"):
        stored = {e.name: e.values for e in eckart.measure(tmp_path / folder).entries}
        assert stored.keys() == live.keys()
        assert all(torch.equal(stored[name], live[name]) for name in live)


def test_updates_between_two_models_have_the_spectrum_of_the_difference() -> None:
    base, _ = families()["llama"]()
    tuned, _ = families()["llama"]()
    change = torch.outer(torch.arange(24.0), torch.ones(24)) * 1e-2
    tuned.model.layers[0].self_attn.q_proj.weight.data += change
    profile = eckart.measure(tuned, base=base, of="updates")
    rows = {r["name"]: r for r in profile.rows()}
    row = rows["model.layers.0.self_attn.q_proj"]
    assert row["norm"] == pytest.approx(float(change.norm()), rel=1e-5)
    assert row["stable_rank"] == pytest.approx(1, rel=1e-5)
    W0 = base.model.layers[0].self_attn.q_proj.weight.detach().double()
    assert row["relative_norm"] == pytest.approx(float(change.norm() / W0.norm()), rel=1e-5)
    assert rows["model.layers.1.self_attn.q_proj"]["norm"] == 0


def test_overlap_is_one_inside_the_base_and_an_intruder_is_counted_outside_it() -> None:
    U, _ = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(0)))
    V, _ = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1)))
    base, inside, outside = (nn.Sequential(nn.Linear(12, 40, bias=False)) for _ in range(3))
    S = torch.linspace(12, 1, 12)
    base[0].weight.data = (U[:, :12] * S) @ V.T
    # Inside: the eight leading directions are rescaled. Outside: a left direction that the base does not have.
    inside[0].weight.data = base[0].weight.data + (U[:, :8] * S[:8] * 0.1) @ V[:, :8].T
    outside[0].weight.data = base[0].weight.data + 30 * torch.outer(U[:, 30], V[:, 3])
    near, far = (eckart.measure(m, base=base, of="updates").rows()[0] for m in (inside, outside))
    assert near["overlap_left"] == pytest.approx(1, abs=1e-4)
    assert near["overlap_right"] == pytest.approx(1, abs=1e-4)
    assert near["intruders"] == 0
    assert far["overlap_left"] < 0.01
    assert far["intruders"] == 1


def test_a_peft_adapter_is_measured_as_the_update_that_it_makes(tmp_path: Path) -> None:
    model, _ = families()["llama"]()
    name = "model.layers.1.mlp.up_proj"
    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(3, 24, generator=generator), torch.randn(40, 3, generator=generator)
    save_file(
        {f"base_model.model.{name}.lora_A.weight": A, f"base_model.model.{name}.lora_B.weight": B},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["up_proj"]}'
    )
    (entry,) = eckart.measure(model, adapter=tmp_path, of="updates").entries
    assert entry.name == name
    torch.testing.assert_close(entry.values[:3], _reference(2 * B @ A)[:3], rtol=1e-5, atol=0)
    assert entry.values[3:].abs().max() == 0
    assert eckart.measure(model, adapter=tmp_path, of="updates").rows()[0]["numerical_rank"] == 3


@pytest.mark.parametrize("name", ["sequential", "conv2d", "gpt2", "llama", "bert", "vit"])
def test_gradients_match_autograd(name: str) -> None:
    model, batches = families()[name]()

    def loss(output: object, batch: object) -> torch.Tensor:
        logits = output if isinstance(output, torch.Tensor) else output.logits
        return logits.float().square().mean()

    profile = eckart.measure(model, batches=batches, of="gradients", loss=loss)
    total = sum(loss(model(**b) if isinstance(b, dict) else model(b), b) for b in batches) / len(batches)
    for matrix in matrices(model):
        parameter = getattr(matrix.module, matrix.parameter)
        (G,) = torch.autograd.grad(total, parameter, retain_graph=True)
        G = matrix.as_matrix(G)
        entries = {e.name: e for e in profile.entries}
        label, reference = (matrix.name, G) if matrix.stack == 1 else (f"{matrix.name}[0]", G[0])
        torch.testing.assert_close(entries[label].values, _reference(reference), rtol=1e-3, atol=1e-7)
    assert all(p.grad is None for p in model.parameters())


def test_activations_match_the_covariance_of_the_inputs_and_skip_padding() -> None:
    model, batches = masked("llama")
    seen: list[torch.Tensor] = []
    target = model.model.layers[1].self_attn.q_proj
    hook = target.register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach()))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    hook.remove()
    mask = torch.cat([b["attention_mask"].flatten().bool() for b in batches])
    X = torch.cat([x.flatten(0, 1) for x in seen])[mask].double()
    reference = torch.linalg.svdvals(X - X.mean(0)) / len(X) ** 0.5
    profile = eckart.measure(model, batches=batches, of="activations")
    entry = next(e for e in profile.entries if e.name == "model.layers.1.self_attn.q_proj")
    torch.testing.assert_close(entry.values, reference[: entry.count], rtol=1e-4, atol=1e-6)
    assert entry.extra["tokens"] == int(mask.sum())
    assert set(entry.extra["shared_with"]) >= {"model.layers.1.self_attn.k_proj", "model.layers.1.self_attn.v_proj"}
    assert entry.extra["intrinsic_dimension"] > 0
    assert "model.layers.1.self_attn.k_proj" not in [e.name for e in profile.entries]


def test_optimizer_moments_are_measured_under_their_own_names() -> None:
    model, batches = families()["sequential"]()
    optimizer = torch.optim.AdamW(model.parameters())
    model(batches[0]).square().mean().backward()
    optimizer.step()
    entries = {e.name: e for e in eckart.measure(model, optimizer=optimizer, of="optimizer").entries}
    assert set(entries) == {f"{i}:{state}" for i in (0, 2, 4) for state in ("exp_avg", "exp_avg_sq")}
    torch.testing.assert_close(
        entries["0:exp_avg"].values, _reference(optimizer.state[model[0].weight]["exp_avg"]), rtol=1e-6, atol=1e-12
    )


def test_without_of_it_measures_what_the_arguments_allow() -> None:
    model, batches = families()["sequential"]()
    assert eckart.measure(model).kinds == ["weights"]
    assert eckart.measure(model, batches=batches, base=model).kinds == ["weights", "updates", "activations"]
    learning = eckart.measure(model, batches=batches, loss=lambda output, _: output.square().mean())
    assert learning.kinds == ["weights", "activations", "gradients"]


def test_progress_counts_to_the_end() -> None:
    model, _ = families()["llama"]()
    calls: list[tuple[int, int, str]] = []
    profile = eckart.measure(model, progress=lambda *call: calls.append(call))
    assert [c[0] for c in calls] == list(range(1, len(profile.entries) + 1))
    assert calls[-1][0] == calls[-1][1]


def test_bf16_weights_are_measured_as_they_are() -> None:
    W = torch.randn(30, 20, generator=torch.Generator().manual_seed(0)).bfloat16()
    layer = nn.Linear(20, 30, bias=False, dtype=torch.bfloat16)
    layer.weight.data = W
    (entry,) = eckart.measure(nn.Sequential(layer)).entries
    torch.testing.assert_close(entry.values, _reference(W), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "quick"}, "mode must be one of"),
        ({"of": "spectrum"}, "of must name some of"),
        ({"of": []}, "of must name some of"),
        ({"of": "updates"}, "needs base= or adapter="),
        ({"of": "activations"}, "needs batches="),
        ({"of": "optimizer"}, "needs optimizer="),
        ({"targets": "q_prj"}, "q_prj"),
        ({"of": "weights", "batches": [1]}, "batches is for kinds"),
    ],
)
def test_bad_arguments_say_what_is_missing(arguments: dict, message: str) -> None:
    model, _ = families()["llama"]()
    with pytest.raises(ValueError, match=message):
        eckart.measure(model, **arguments)


def test_a_nan_is_reported_with_the_name_of_its_matrix() -> None:
    model, _ = families()["sequential"]()
    model[2].weight.data[0, 0] = torch.nan
    for mode in ("full", "fast"):
        with pytest.raises(ValueError, match=r"^2: "):
            eckart.measure(model, mode=mode)


def test_a_model_without_matrices_and_batches_without_tokens_are_errors() -> None:
    with pytest.raises(ValueError, match="no matrices"):
        eckart.measure(nn.Sequential(nn.ReLU(), nn.LayerNorm(4)))
    model, batches = masked("llama")
    for batch in batches:
        batch["attention_mask"].zero_()
    with pytest.raises(ValueError, match="token"):
        eckart.measure(model, batches=batches, of="activations")
    with pytest.raises(ValueError, match="batch"):
        eckart.measure(model, batches=[], of="activations")


def test_updates_against_another_model_name_the_first_difference() -> None:
    llama, _ = families()["llama"]()
    gpt2, _ = families()["gpt2"]()
    with pytest.raises(ValueError, match="base has no matrix"):
        eckart.measure(llama, base=gpt2, of="updates")
    narrow = nn.Sequential(nn.Linear(4, 4))
    wide = nn.Sequential(nn.Linear(4, 5))
    with pytest.raises(ValueError, match=r"0: shape \(4, 4\) against \(5, 4\)"):
        eckart.measure(narrow, base=wide, of="updates")


def test_activations_of_a_path_ask_for_a_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="load it first"):
        eckart.measure(tmp_path, of="activations", batches=[torch.zeros(1, 4)])


def test_a_live_gpt2_is_its_own_checkpoint(tmp_path: Path) -> None:
    model, _ = families()["gpt2"]()
    model.save_pretrained(tmp_path)
    names = ["*.c_attn", "*.c_fc", "*.attn.c_proj"]  # transformers' Conv1D lies transposed on disk
    model.transformer.h[0].attn.c_proj.weight.data[0, 1] += 1
    for subject, base in ((model, tmp_path), (tmp_path, model)):
        rows = eckart.measure(subject, base=base, of="updates", targets=names).rows()
        assert [r["name"].removeprefix("transformer.") for r in rows if r["norm"]] == ["h.0.attn.c_proj"]
        assert max(r["norm"] for r in rows) == pytest.approx(1, rel=1e-5)


def test_what_a_checkpoint_holds_beside_matrices_is_told(tmp_path: Path) -> None:
    save_file(
        {"a.weight": torch.randn(4, 4), "b.weight": torch.zeros(4, 4, dtype=torch.uint8)}, tmp_path / "x.safetensors"
    )
    profile = eckart.measure(tmp_path / "x.safetensors")
    assert [e.name for e in profile.entries] == ["a"]
    assert list(profile.details["left_out"]) == ["b.weight"]


def test_inputs_without_a_dimension_still_make_a_profile_that_can_be_kept(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 4))
    one_hot = torch.eye(8).repeat(4, 1)
    profile = eckart.measure(model, batches=[one_hot], of="activations")
    profile.save(tmp_path / "p")
    assert eckart.Profile.load(tmp_path / "p").rows() == profile.rows()
