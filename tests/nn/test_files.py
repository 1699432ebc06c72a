"""Atomic writing, safetensors read one at a time, and what is refused, with its remedy."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from eckart.nn.files import (
    atomic_directory,
    atomic_write,
    open_checkpoint,
    read_header,
    read_json,
    read_tensor,
    save_safetensors,
    write_json,
)


def _write_and_fail(file):
    file.write_text("half")
    raise RuntimeError


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    place = tmp_path / "new" / "deep" / "file.txt"
    with pytest.raises(RuntimeError), atomic_write(place) as beside:
        _write_and_fail(beside)
    assert list(tmp_path.iterdir()) == []
    with atomic_write(place) as beside:
        assert (beside.parent, beside.suffix) == (place.parent, ".txt")
        beside.write_text("whole")
    assert place.read_text() == "whole"
    assert list(place.parent.iterdir()) == [place]


def test_a_failed_replacement_leaves_the_old_file(tmp_path):
    place = tmp_path / "file.txt"
    place.write_text("old")
    with pytest.raises(FileExistsError, match="--force"), atomic_write(place):
        pass
    with pytest.raises(RuntimeError), atomic_write(place, force=True) as beside:
        _write_and_fail(beside)
    assert place.read_text() == "old"
    with atomic_write(place, force=True) as beside:
        beside.write_text("new")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["new"]


def test_a_failed_replacement_leaves_the_old_folder(tmp_path):
    place = tmp_path / "model"
    with atomic_directory(place) as beside:
        (beside / "a").write_text("old")
    with pytest.raises(FileExistsError, match="--force"), atomic_directory(place):
        pass
    with pytest.raises(RuntimeError), atomic_directory(place, force=True, mark="a") as beside:
        _write_and_fail(beside / "b")
    assert [file.name for file in place.iterdir()] == ["a"]
    with atomic_directory(place, force=True, mark="a") as beside:
        (beside / "b").write_text("new")
    assert [file.name for file in place.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [place]


def test_an_empty_folder_may_be_there_already_and_a_file_may_not(tmp_path):
    with atomic_directory(tmp_path / "model") as beside:
        (beside / "a").write_text("x")
    (tmp_path / "empty").mkdir()
    with atomic_directory(tmp_path / "empty") as beside:
        (beside / "a").write_text("x")
    with pytest.raises(FileExistsError, match="is a file"), atomic_directory(tmp_path / "model" / "a", force=True):
        pass
    with pytest.raises(FileExistsError, match="is a folder"), atomic_write(tmp_path / "model", force=True):
        pass


def test_force_never_deletes_a_folder_that_holds_folders(tmp_path):
    (tmp_path / "home" / "work").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="work"), atomic_directory(tmp_path / "home", force=True):
        pass
    assert (tmp_path / "home" / "work").is_dir()


def test_an_interrupt_between_the_two_renames_puts_the_old_folder_back(tmp_path, monkeypatch):
    place = tmp_path / "adapter"
    with atomic_directory(place) as beside:
        (beside / "mark").write_text("old")
    rename, calls = Path.rename, []

    def interrupted(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_directory(place, force=True, mark="mark") as beside:
        (beside / "mark").write_text("new")
    assert (place / "mark").read_text() == "old"
    assert list(tmp_path.iterdir()) == [place]


def test_force_replaces_only_a_folder_that_is_known_by_its_mark(tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    for mark in (None, "profile.json"):
        with (
            pytest.raises(FileExistsError, match="does not replace"),
            atomic_directory(tmp_path, force=True, mark=mark),
        ):
            pass
    assert (tmp_path / "thesis.txt").read_text() == "years"


def test_json_comes_back_as_written_and_bad_json_is_named(tmp_path):
    write_json(tmp_path / "a.json", {"β": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json") == {"β": [1, 2.5, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", float("nan"))
    assert not (tmp_path / "b.json").exists()
    (tmp_path / "b.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"b.json is not valid JSON .*UTF-8"):
        read_json(tmp_path / "b.json")
    with pytest.raises(FileNotFoundError, match=r"c.json"):
        read_json(tmp_path / "c.json")


FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64, torch.int8, torch.uint8, torch.bool], ids=str)
def test_a_tensor_comes_back_bit_for_bit_as_safetensors_itself_reads_it(tmp_path, dtype, generator):
    W = (torch.randn(5, 3, generator=generator) * 4).to(dtype)
    save_safetensors(tmp_path / "a.safetensors", {"W": W, "scalar": W[0, 0], "empty": W[:0]}, {"note": "x"})
    ours = {name: read_tensor(info) for name, info in read_header(tmp_path / "a.safetensors").items()}
    theirs = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert set(ours) == set(theirs) == {"W", "scalar", "empty"}
    for name, tensor in ours.items():
        assert tensor.shape == theirs[name].shape
        assert tensor.dtype == dtype
        assert tensor.reshape(-1).view(torch.uint8).equal(theirs[name].reshape(-1).view(torch.uint8))


def test_one_slice_of_a_stack_is_read_alone(tmp_path, generator):
    experts = torch.randn(4, 6, 5, generator=generator)
    save_safetensors(tmp_path / "a.safetensors", {"before": torch.ones(3), "experts": experts})
    checkpoint = open_checkpoint(tmp_path / "a.safetensors")
    assert checkpoint.read("experts", index=2).equal(experts[2])
    with pytest.raises(IndexError, match="index: 4"):
        checkpoint.read("experts", index=4)
    with pytest.raises(ValueError, match="no tensor 'nobody'"):
        checkpoint.read("nobody")


def test_tensors_that_share_memory_are_saved_as_copies_and_only_dense_ones_are(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    save_safetensors(tmp_path / "a.safetensors", {"a": base, "b": base.T, "row": base[1], "same": base})
    checkpoint = open_checkpoint(tmp_path / "a.safetensors")
    assert checkpoint.read("b").equal(base.T)
    assert checkpoint.read("row").equal(base[1])
    (tmp_path / "usual").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode
    (tmp_path / "usual").unlink()
    with pytest.raises(TypeError, match="dense"):
        save_safetensors(tmp_path / "b.safetensors", {"a": base.to_sparse()})
    with pytest.raises(FileExistsError, match="--force"):
        save_safetensors(tmp_path / "a.safetensors", {"a": base})
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_reading_a_large_checkpoint_keeps_one_tensor_in_memory(tmp_path):
    save_safetensors(tmp_path / "a.safetensors", {f"layers.{i}.weight": torch.ones(3200, 3200) for i in range(5)})
    program = f"""
import os, torch
from eckart.nn.files import open_checkpoint
page = os.sysconf("SC_PAGE_SIZE")
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * page / 1e6
W = torch.ones(3200, 3200); W.sum(); del W
before = resident()
checkpoint = open_checkpoint({str(tmp_path)!r})
opened = resident()
most, total = 0.0, 0.0
for matrix in checkpoint.matrices():
    W = checkpoint.read(matrix.key)
    most = max(most, resident())
    total += float(W.sum())
    del W
assert total == 5 * 3200 * 3200
mapped = "a.safetensors" in open("/proc/self/maps").read()
print(opened - before, most - before, resident() - before, mapped)
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc to see the memory in use")
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    opened, most, after, mapped = run.stdout.split()
    assert mapped == "False"
    assert float(opened) < 3  # MB; one tensor is 41, the file 205
    assert float(most) < 41 + 10
    assert float(after) < 10


def _damaged(tmp_path, change):
    file = tmp_path / "model.safetensors"
    save_safetensors(file, {"a.weight": torch.ones(20, 20), "b.weight": torch.ones(20, 20)})
    file.write_bytes(change(file.read_bytes()))
    return file


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda content: content[:-100], r"model\.safetensors is truncated: \d+ bytes of \d+; download"),
        (lambda content: content[:60], "is truncated.*header"),
        (lambda content: content[:5], "is truncated.*header"),
        (lambda content: b"", "is truncated: its 0 bytes"),
        (lambda content: content + b"more", "is corrupt: 4 bytes follow"),
        (lambda content: content[:8] + b"\x00" + content[9:], "is corrupt: its header"),
        (lambda content: content.replace(b"[0,1600]", b"[4,1604]"), "is corrupt: the values of"),
        (lambda content: content.replace(b"[20,20]", b"[20,21]", 1), "is corrupt.*does not fill"),
        (lambda content: b"\xff" * 40, "is not a safetensors file"),
        (lambda content: pickle.dumps({"a": 1}), "is a pickle.*weights_only=True"),
        (lambda content: b"GGUF" + bytes(100), r"GGUF.*eckart\.lm\.load"),
        (lambda content: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (lambda content: b"<!DOCTYPE html>", "web page"),
    ],
)
def test_a_damaged_or_foreign_file_is_named_with_its_remedy(tmp_path, change, told):
    file = _damaged(tmp_path, change)
    for path in (file, tmp_path):
        with pytest.raises(ValueError, match=told):
            open_checkpoint(path)


def test_a_torch_pickle_in_disguise_is_refused(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="is a PyTorch pickle"):
        open_checkpoint(tmp_path)


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path):
    file = tmp_path / "model.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(0x0280)
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert file.read_bytes()[:2] == b"\x80\x02"
    assert open_checkpoint(file).read("a").tolist() == [0.0]


def test_a_file_that_shrinks_after_its_header_was_read_is_named(tmp_path):
    file = _damaged(tmp_path, lambda content: content)
    checkpoint = open_checkpoint(file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="became shorter"):
        checkpoint.read("b.weight")


def test_a_folder_without_safetensors_is_refused_with_its_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is nothing at"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="is an empty folder"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"no .safetensors file \(it holds config.json\)"):
        open_checkpoint(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pickles \(pytorch_model.bin\).*save_pretrained"):
        open_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"is a pickle.*pytorch_model.safetensors"):
        open_checkpoint(tmp_path / "pytorch_model.bin")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"PEFT adapter.*--adapter"):
        open_checkpoint(tmp_path)


def _sharded(tmp_path, weight_map):
    save_safetensors(tmp_path / "one.safetensors", {"a.weight": torch.ones(2, 3)})
    save_safetensors(tmp_path / "two.safetensors", {"b.weight": torch.ones(4, 5)})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(weight_map))
    return tmp_path


def test_shards_are_read_as_one_checkpoint(tmp_path):
    folder = _sharded(tmp_path, {"weight_map": {"a.weight": "one.safetensors", "b.weight": "two.safetensors"}})
    for path in (folder, folder / "model.safetensors.index.json"):
        checkpoint = open_checkpoint(path)
        assert {m.name: m.shape for m in checkpoint.matrices()} == {"a": (2, 3), "b": (4, 5)}
        assert checkpoint.read("b.weight").sum() == 20


@pytest.mark.parametrize(
    ("index", "error", "told"),
    [
        ({"weight_map": {"a.weight": "three.safetensors"}}, FileNotFoundError, "lacks 1 of its 1 shards.*three"),
        ({"weight_map": {"a.weight": "two.safetensors"}}, ValueError, "lists 'a.weight' in two.safetensors"),
        ({"weight_map": {"a.weight": "../two.safetensors"}}, ValueError, "malformed.*outside its folder"),
        ({"metadata": {}}, ValueError, "malformed.*weight_map"),
        ([], ValueError, "malformed.*weight_map"),
        ({"weight_map": {"a.weight": 3}}, ValueError, "malformed.*weight_map"),
    ],
)
def test_a_bad_index_is_named(tmp_path, index, error, told):
    with pytest.raises(error, match=told):
        open_checkpoint(_sharded(tmp_path, index))


def test_several_files_without_an_index_are_ambiguous(tmp_path):
    folder = _sharded(tmp_path, {})
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(
        ValueError, match=r"several safetensors files and no index \(one.safetensors, two.safetensors\)"
    ):
        open_checkpoint(folder)
    (folder / "two.safetensors").unlink()
    assert [m.name for m in open_checkpoint(folder).matrices()] == ["a"]
