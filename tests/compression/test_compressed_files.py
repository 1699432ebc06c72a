"""Files of compressed models: they come back bit for bit on a fresh model, or an error leaves everything as it was."""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eckart
from eckart.compression import densify, load, save
from eckart.compression.files import saving as files_saving
from eckart.compression.files.description import describe
from eckart.nn import FactoredLinear, PivotedLinear, matrices, replace
from eckart.nn.batches import run_model
from eckart.nn.compressed import LAYERS
from eckart.nn.compressed_linear import to_linear
from families import families

FAMILIES = ("sequential", "conv1d", "conv2d", "encoder", "gpt2", "llama", "bert", "vit")


def output(model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        result = run_model(model, batch)
    return getattr(result, "logits", result)


def shrink(model: nn.Module) -> list[str]:
    """Every other matrix of a model as factors, the others pivoted; what has no such form stays."""
    done = []
    for matrix in matrices(model):
        if matrix.stack > 1 or matrix.tied or matrix.kind not in ("linear", "conv1d", "conv") or not matrix.stored:
            continue
        storage = "factored" if len(done) % 2 else "pivoted"
        if matrix.kind == "conv":
            layer = LAYERS[f"{storage}_conv"].empty(matrix.module, rank=2)
            nn.init.normal_(next(layer.parameters()), generator=torch.Generator().manual_seed(3))
        else:
            layer = (FactoredLinear if storage == "factored" else PivotedLinear).from_linear(matrix.module, rank=2)
        replace(model, matrix.name, layer)
        done.append(matrix.name)
    with torch.no_grad():
        for parameter in model.parameters():  # what `empty` left
            parameter.nan_to_num_(0.5, 0.5, 0.5).clamp_(-2, 2)
    return done


def compressed(family: str) -> tuple[nn.Module, nn.Module, list[Any]]:
    """A compressed model, a fresh dense one, and batches."""
    model, batches = families()[family]()
    fresh = deepcopy(model)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(1.0)  # all weights must come from the files
    shrink(model)
    return model, fresh, batches


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_comes_back_bit_for_bit_on_a_fresh_one(family: str, tmp_path: Path) -> None:
    model, fresh, batches = compressed(family)
    eckart.compression.save(model, tmp_path / "small")
    assert eckart.load(tmp_path / "small", into=fresh) is fresh
    assert torch.equal(output(fresh, batches[0]), output(model, batches[0]))
    assert describe(fresh) == describe(model)


@pytest.mark.parametrize("family", ["sequential", "conv2d", "gpt2", "llama"])
def test_densify_gives_the_same_outputs_and_the_dense_model_s_shapes(family: str) -> None:
    model, fresh, batches = compressed(family)
    before = output(model, batches[0])
    assert densify(model) is model
    torch.testing.assert_close(output(model, batches[0]), before, atol=1e-4, rtol=1e-4)
    shapes = {key: tensor.shape for key, tensor in fresh.state_dict().items()}
    assert {key: tensor.shape for key, tensor in model.state_dict().items()} == shapes
    with pytest.raises(ValueError, match="dense already"):
        densify(model)


def shared() -> nn.Module:
    """Two layers that hold one basis, and a tied pair."""
    model = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("a", "b", "c", "d")})
    model["d"].weight = model["c"].weight
    for name in ("a", "b"):
        replace(model, name, FactoredLinear.from_linear(model[name], rank=2))
    model["b"].A = model["a"].A
    return model


def test_a_shared_basis_and_a_tied_weight_are_stored_once_and_shared_again(tmp_path: Path) -> None:
    model = shared()
    fresh = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("a", "b", "c", "d")})
    fresh["d"].weight = fresh["c"].weight
    save(model, tmp_path / "small")
    assert {"b.A", "d.weight"}.isdisjoint(eckart.nn.files.open_checkpoint(tmp_path / "small").tensors())
    load(tmp_path / "small", into=fresh)
    assert fresh["b"].A is fresh["a"].A
    assert torch.equal(fresh["b"].weight, model["b"].weight)
    assert torch.equal(fresh["d"].weight, model["d"].weight)
    densify(fresh)
    torch.testing.assert_close(fresh["b"].weight, model["b"].weight)


def test_a_smaller_dense_layer_is_saved_with_its_shape_and_padded_when_dense_again(tmp_path: Path) -> None:
    model, fresh, (rows, _) = *(families()["sequential"]()[0] for _ in range(2)), families()["sequential"]()[1]
    for name, shape, cut in (("0", (20, 12), (slice(7), slice(None))), ("2", (16, 20), (slice(None), slice(7)))):
        linear = model.get_submodule(name)
        small: Any = to_linear(linear.weight[cut], linear.bias[cut[0]])
        small.dense_shape = shape
        replace(model, name, small)
    save(model, tmp_path / "small")
    load(tmp_path / "small", into=fresh)
    assert torch.equal(output(fresh, rows), output(model, rows))
    assert fresh[0].weight.shape == (7, 12)
    densify(fresh)
    torch.testing.assert_close(output(fresh, rows), output(model, rows))
    assert fresh[0].weight.shape == (20, 12)


def test_large_models_are_sharded_with_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_saving, "LARGEST", 400)
    model, fresh, batches = compressed("sequential")
    save(model, tmp_path / "small")
    names = sorted(file.name for file in (tmp_path / "small").glob("*.safetensors"))
    assert len(names) > 1
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    assert torch.equal(output(load(tmp_path / "small", into=fresh), batches[0]), output(model, batches[0]))
    (tmp_path / "small" / names[1]).unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of its"):
        load(tmp_path / "small", into=families()["sequential"]()[0])


def test_the_weights_take_the_model_s_dtype(tmp_path: Path) -> None:
    model, fresh, _ = compressed("sequential")
    save(model, tmp_path / "small")
    load(tmp_path / "small", into=fresh.double())
    assert {tensor.dtype for tensor in fresh.parameters()} == {torch.float64}


def test_a_disk_that_fills_up_in_mid_save_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, fresh, batches = compressed("sequential")
    save(model, tmp_path / "small")
    monkeypatch.setattr(files_saving, "LARGEST", 400)
    write, written = files_saving.save_safetensors, []

    def full(path: Path, tensors: Any) -> None:
        if written:
            raise OSError(28, "No space left on device")
        write(path, tensors)
        written.append(path)

    monkeypatch.setattr(files_saving, "save_safetensors", full)
    for place, force in ((tmp_path / "new" / "small", False), (tmp_path / "small", True)):
        written.clear()
        with pytest.raises(OSError, match="No space"):
            save(model, place, force=force)
    assert [file.name for file in tmp_path.iterdir()] == ["small"]
    assert torch.equal(output(load(tmp_path / "small", into=fresh), batches[0]), output(model, batches[0]))


def damage(folder: Path, how: str) -> None:
    description = json.loads((folder / "eckart.json").read_text())
    layers, weights = description["layers"], folder / "model.safetensors"
    if how == "format":
        description["format"] = 2
    elif how == "rank":
        layers["0"]["rank"] = -1
    elif how == "kind":
        layers["0"]["kind"] = "os.system"
    elif how == "name":
        layers["9"] = layers.pop("0")
    elif how == "shares":
        layers["0"]["shares"] = "7"
    elif how == "layers":
        description["layers"] = []
    elif how == "sizes":
        layers["0"]["in_features"] = 13
    elif how == "lacking":
        layers.pop("0")
    (folder / "eckart.json").write_text("{" if how == "json" else json.dumps(description))
    if how == "cut":
        weights.write_bytes(weights.read_bytes()[:-5])
    elif how == "gone":
        weights.unlink()
    elif how == "none":
        shutil.rmtree(folder)
        folder.mkdir()


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ("format", ValueError, "is of format 2"),
        ("rank", ValueError, "damaged, layer 0.*rank is -1"),
        ("kind", ValueError, "damaged, layer 0.*os.system"),
        ("name", ValueError, "no layer 9"),
        ("shares", ValueError, "shares the basis of '7'"),
        ("layers", ValueError, "must be matrix name → spec"),
        ("sizes", ValueError, "another model: 0 is .20, 13. there"),
        ("lacking", ValueError, "is another: .*0.weight"),
        ("json", ValueError, "not valid JSON"),
        ("cut", ValueError, "truncated"),
        ("gone", FileNotFoundError, "no .safetensors"),
        ("none", FileNotFoundError, "holds no compressed model"),
    ],
)
def test_damaged_files_are_named_and_leave_the_model_as_it_was(
    how: str, error: type[Exception], says: str, tmp_path: Path
) -> None:
    model, fresh, _ = compressed("sequential")
    save(model, tmp_path / "small")
    damage(tmp_path / "small", how)
    before = {key: tensor.clone() for key, tensor in fresh.state_dict().items()}
    with pytest.raises(error, match=says):
        load(tmp_path / "small", into=fresh)
    assert list(before) == list(fresh.state_dict())
    assert all(torch.equal(before[key], tensor) for key, tensor in fresh.state_dict().items())


def test_another_base_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    model, _, _ = compressed("sequential")
    save(model, tmp_path / "small")
    other = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4), nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"it lacks 5\.weight"):
        load(tmp_path / "small", into=other)
    assert isinstance(other[0], nn.Linear)
    with pytest.raises(ValueError, match="meta"):
        load(tmp_path / "small", into=families()["sequential"]()[0].to("meta"))


def test_what_cannot_be_saved_is_said(tmp_path: Path) -> None:
    model, fresh, _ = compressed("sequential")
    with pytest.raises(ValueError, match="no compressed layers"):
        save(fresh, tmp_path / "small")
    save(model, tmp_path / "small")
    with pytest.raises(FileExistsError, match="force"):
        save(model, tmp_path / "small")
    save(model, tmp_path / "small", force=True)
    eckart.adapt(model, rank=1, targets="0")
    with pytest.raises(ValueError, match="adapted; merge the adapter"):
        save(model, tmp_path / "other")


def test_save_and_load_hand_over_by_what_there_is(tmp_path: Path) -> None:
    model, fresh, batches = compressed("sequential")
    with pytest.raises(ValueError, match="no adapter"):
        eckart.save(fresh, tmp_path / "none")
    eckart.save(model, tmp_path / "small")
    base = deepcopy(model)
    eckart.adapt(model, rank=1, targets="0")
    assert eckart.save(model, tmp_path / "adapter").method == "lora"
    eckart.load(tmp_path / "small", into=fresh)
    eckart.load(tmp_path / "adapter", into=base)
    assert torch.equal(output(base, batches[0]), output(model, batches[0]))
    with pytest.raises(ValueError, match="has no name"):
        eckart.load(tmp_path / "small", into=fresh, name="default")
