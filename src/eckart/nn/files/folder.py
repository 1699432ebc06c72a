"""Where a checkpoint's tensors are: one file, shards with an index, or what must be refused, with the remedy."""

from pathlib import Path

from eckart.nn.files.atomic import read_json
from eckart.nn.files.tensors import TensorInfo, pickle_remedy, read_header

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
INDEX = "model.safetensors.index.json"


def locate_tensors(path: Path) -> dict[str, TensorInfo]:
    """Find every tensor of a checkpoint through the headers of its files.

    Args:
        path: A .safetensors file, an index, or a folder (see `open_checkpoint`).

    Returns:
        Name → TensorInfo.

    Raises:
        FileNotFoundError: There is nothing at `path`, no safetensors file in the folder, or a shard is missing.
        ValueError: A file is truncated, corrupt or a pickle; the message names it and the remedy.
    """
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise FileNotFoundError(f"path: there is nothing at {path}; give a .safetensors file or a model's folder")
    if path.suffix in PICKLES:
        raise ValueError(f"path: {path} is a pickle; {pickle_remedy(path)}")
    return _shards(path) if path.name.endswith(".index.json") else read_header(path)


def _folder(folder: Path) -> dict[str, TensorInfo]:
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"path: {folder} is a PEFT adapter, not a model; give it as the adapter (--adapter)")
    files = sorted(folder.glob("*.safetensors"))
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if folder / "model.safetensors" in files:
        return read_header(folder / "model.safetensors")
    if indexes:
        if len(indexes) > 1 and folder / INDEX not in indexes:
            raise ValueError(f"path: {folder} holds several indexes ({_names(indexes)}); give one of them")
        return _shards(folder / INDEX if folder / INDEX in indexes else indexes[0])
    if len(files) > 1:
        raise ValueError(
            f"path: {folder} holds several safetensors files and no index ({_names(files)}); give one of them"
        )
    if files:
        return read_header(files[0])
    raise _nothing(folder)


def _nothing(folder: Path) -> Exception:
    """The error for a folder without safetensors."""
    entries = sorted(folder.iterdir())
    pickles = [file for file in entries if file.suffix in PICKLES and file.stem != "training_args"]
    if pickles:
        return ValueError(
            f"path: {folder} holds pickles ({_names(pickles)}) and no safetensors; eckart reads no pickles, since "
            "opening one can run code. Convert it once: `from transformers import AutoModel; "
            f"AutoModel.from_pretrained('{folder}').save_pretrained('{folder.name}-safetensors')`"
        )
    kind = f"holds no .safetensors file (it holds {_names(entries)})" if entries else "is an empty folder"
    return FileNotFoundError(f"path: {folder} {kind}; give a folder that save_pretrained wrote")


def _shards(index: Path) -> dict[str, TensorInfo]:
    """The tensors that an index lists, each from the header of its shard."""
    content = read_json(index)
    listed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise ValueError(f"{index} is malformed: it has no weight_map of tensor names to file names; download it again")
    names = sorted(set(listed.values()))
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{index} is malformed: {name!r} lies outside its folder; download it again")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{index.parent} lacks {len(missing)} of its {len(names)} shards ({', '.join(missing[:3])}); "
            "download them again"
        )
    held = {key: info for name in names for key, info in read_header(index.parent / name).items()}
    absent = [key for key in listed if key not in held]
    if absent:
        raise ValueError(
            f"{index} lists {absent[0]!r} in {listed[absent[0]]}, which does not hold it; download both again"
        )
    return {key: info for key, info in held.items() if key in listed}


def _names(files: list[Path]) -> str:
    return ", ".join(file.name for file in files[:4]) + (", …" if len(files) > 4 else "")
